"""The three pytrees that all parts share, `Targets`, `Batch` and `Detections`, and their sizes.

Everything that varies from picture to picture is padded to a fixed size and carries a validity
mask, so that one compiled program serves every picture. Shapes below are for one image; a batch
adds `B` in front.
"""

import dataclasses
from typing import Literal, NamedTuple

from flax import struct
from jaxtyping import Array, Bool, Float32, Int32, UInt8
from numpy import ndarray

# Host code fills these with NumPy arrays, jitted code sees JAX arrays.
AnyArray = Array | ndarray


class MaskCrop(NamedTuple):
    """A binary mask of a picture, as a part of the picture outside of which the mask has no pixel.

    Attributes:
        top, left: the first row and column of the part.
        bits: bool `[h, w]`.
    """

    top: int
    left: int
    bits: ndarray


@dataclasses.dataclass(frozen=True)
class Resize:
    """How a picture gets into the network's input.

    Attributes:
        rule: "stretch" fills the input whatever its proportions. All others keep them, and differ
            in how they round the size and in who interpolates: "opencv" (mmdetection), "pillow"
            (detectron2), "pillow_truncated" (maskrcnn-benchmark), "float" (torchvision).
        shorter_sides: pixels; training draws one, evaluation takes the largest.
        longer_side: pixels; the longer side may not exceed it.
    """

    rule: Literal["stretch", "opencv", "pillow", "pillow_truncated", "float"] = "stretch"
    shorter_sides: tuple[int, ...] = ()
    longer_side: int = 0


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a detector wants its batches to be; data and evaluation follow it.

    How pictures get into the input (`resize`) and what masks cover (`mask_frame`) are separate
    choices: each of one goes with each of the other.

    Attributes:
        input_sizes: heights and widths that the network's input may have; each batch has one of
            them.
        mask_size: height and width of the ground-truth masks (YOLACT: the prototypes'), or None for
            a detector without masks. Masks over the input are of this size in the first of
            `input_sizes`; see `mask_size_in` for the others.
        semantic_size: height and width of the masks of each class (YOLACT: P3's), over the first of
            `input_sizes`, or None where they are not wanted; see `semantic_size_in` for the others.
        num_classes: of the dataset; rows of `Targets.semantic`.
        resize: how a picture gets into the input.
        mask_frame: what a mask's cells cover. "image": the network's input. "box": the object's
            box. "integer_box": the same, and a detected mask goes back into the picture stretched
            over the whole pixels of its box.
        pixel_offset: 1 where boxes end in their last pixel (x + width - 1).

    Raises:
        ValueError: the cells over another of `input_sizes` are no whole number.
    """

    input_sizes: tuple[tuple[int, int], ...]
    mask_size: tuple[int, int] | None
    semantic_size: tuple[int, int] | None
    num_classes: int
    resize: Resize = Resize()
    mask_frame: Literal["image", "box", "integer_box"] = "image"
    pixel_offset: float = 0.0

    def __post_init__(self) -> None:
        for input_size in self.input_sizes:
            self.mask_size_in(input_size)
            self.semantic_size_in(input_size)

    def mask_size_in(self, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Height and width of the ground-truth masks in a batch of this input size."""
        return self._in_input("mask_size", self.mask_size, input_size) if self.mask_frame == "image" else self.mask_size

    def semantic_size_in(self, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Height and width of the masks of each class in a batch of this input size."""
        return self._in_input("semantic_size", self.semantic_size, input_size)

    def _in_input(self, name: str, size: tuple[int, int] | None, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """A size that is stated for the first input, for another one."""
        if size is None:
            return None
        first = self.input_sizes[0]
        height, width = (cells * side for cells, side in zip(size, input_size, strict=True))
        if height % first[0] or width % first[1]:
            raise ValueError(
                f"{name} = {size} in an input of {first} would be {(height / first[0], width / first[1])} in one of {input_size}; "
                "these must be whole numbers."
            )
        return height // first[0], width // first[1]


@struct.dataclass
class Targets:
    """Ground truth of one image, `N` = `config.data.max_objects` rows.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input; see `InputSpec.pixel_offset`.
        classes: 0 .. C-1, in the order of the dataset's category ids.
        valid: the row holds an object (ordinary or crowd); all other rows are padding.
        crowd: the row is a crowd region: it silences priors, and no loss learns from it.
        masks: instance masks, packed along x (`numpy.packbits`, big endian), over the input or each
            over its box, see `InputSpec.mask_frame`; None for a detector without masks.
        semantic: union of the masks of each class at the semantic head's resolution, packed along
            x; None where not wanted.
    """

    boxes: Float32[AnyArray, "*B N 4"]
    classes: Int32[AnyArray, "*B N"]
    valid: Bool[AnyArray, "*B N"]
    crowd: Bool[AnyArray, "*B N"]
    masks: UInt8[AnyArray, "*B N h w8"] | None
    semantic: UInt8[AnyArray, "*B C hs ws8"] | None


@struct.dataclass
class Batch:
    """What one training or validation step gets.

    Attributes:
        images: RGB, 0..255, the network's input (uint8 in training; evaluation keeps the resize's
            float32).
        image_sizes: height and width that each picture has within the network's input; padding lies
            right of it and below.
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
        boxes: `x1, y1, x2, y2` in pixels of the network's input; may reach outside of it; see
            `InputSpec.pixel_offset`.
        scores: 0..1.
        classes: 0 .. C-1.
        valid: the row holds a detection; valid rows come first.
        masks: probability of each cell, over the input (0 outside the box) or over the detection's
            box, see `InputSpec.mask_frame`; None where the detector has no masks.
    """

    boxes: Float32[AnyArray, "*B D 4"]
    scores: Float32[AnyArray, "*B D"]
    classes: Int32[AnyArray, "*B D"]
    valid: Bool[AnyArray, "*B D"]
    masks: Float32[AnyArray, "*B D h w"] | None
