"""The three pytrees that travel through the house: `Targets`, `Batch` and `Detections`, and the `InputSpec` that sizes them.

Everything that varies from picture to picture is padded to a fixed size and carries a validity mask,
so that one compiled program serves every picture. Shapes below are for one image; a batch adds `B` in front.
"""

import dataclasses

from flax import struct
from jaxtyping import Array, Bool, Float32, Int32, UInt8
from numpy import ndarray

# Host code fills these with NumPy arrays, jitted code sees JAX arrays.
AnyArray = Array | ndarray


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The static sizes a detector wants its batches in; `Detector.input_spec` gives it, the data pipeline obeys.

    Attributes:
        image_size: height and width of the network's input.
        mask_size: height and width of the ground-truth masks (YOLACT: the prototypes').
        semantic_size: height and width of the per-class masks (YOLACT: P3's).
        num_classes: rows of `Targets.semantic`.
    """

    image_size: tuple[int, int]
    mask_size: tuple[int, int]
    semantic_size: tuple[int, int]
    num_classes: int


@struct.dataclass
class Targets:
    """Ground truth of one image, `N` = `config.data.max_objects` rows.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input.
        classes: 0 .. C-1, in the order of the dataset's category ids.
        valid: the row holds an object (ordinary or crowd); all other rows are padding.
        crowd: the row is a crowd region: it silences priors, and no loss learns from it.
        masks: instance masks at prototype resolution `[h, w]`, packed along x (`numpy.packbits`, big endian).
        semantic: union of the masks of each class at the semantic head's resolution, packed along x.
    """

    boxes: Float32[AnyArray, "*B N 4"]
    classes: Int32[AnyArray, "*B N"]
    valid: Bool[AnyArray, "*B N"]
    crowd: Bool[AnyArray, "*B N"]
    masks: UInt8[AnyArray, "*B N h w8"]
    semantic: UInt8[AnyArray, "*B C hs ws8"]


@struct.dataclass
class Batch:
    """What one training or validation step gets.

    Attributes:
        images: RGB, 0..255, at network size (uint8 in training; evaluation keeps the resize's float32).
        image_sizes: height and width of the original picture, in pixels.
        indices: position of the image in its dataset, so that the host can name it; -1 for padding.
        valid: False for images that only fill up the last batch.
        targets: ground truth of each image.
    """

    images: UInt8[AnyArray, "B H W 3"] | Float32[AnyArray, "B H W 3"]
    image_sizes: Int32[AnyArray, "B 2"]
    indices: Int32[AnyArray, "B"]
    valid: Bool[AnyArray, "B"]
    targets: Targets


@struct.dataclass
class Detections:
    """What a detector found in one image, best score first, `D` rows of which `valid` ones count.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input; may reach outside of it.
        scores: 0..1.
        classes: 0 .. C-1.
        valid: the row holds a detection; valid rows come first.
        masks: probability of each pixel of the network's input, at prototype resolution, 0 outside the box;
            None where the detector has no masks.
    """

    boxes: Float32[AnyArray, "*B D 4"]
    scores: Float32[AnyArray, "*B D"]
    classes: Int32[AnyArray, "*B D"]
    valid: Bool[AnyArray, "*B D"]
    masks: Float32[AnyArray, "*B D h w"] | None
