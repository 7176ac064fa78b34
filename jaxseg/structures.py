"""The three pytrees that all parts share, `Targets`, `Batch` and `Detections`, and their sizes.

Everything that varies from picture to picture is padded to a fixed size and has a validity mask, so
that one compiled program works for every picture. The shapes are those of one image; a batch adds
`B` in front.
"""

import dataclasses
from typing import Literal, NamedTuple

from flax import struct
from jaxtyping import Array, Bool, Float32, Int32, UInt8
from numpy import ndarray

# On the host these are NumPy arrays; in jitted code they are JAX arrays.
AnyArray = Array | ndarray

# What a picture that keeps its proportions is padded to: the smallest input of its own that holds
# it, or one of a few shapes that the detector lists.
Canvas = Literal["own", "shapes"]


class MaskCrop(NamedTuple):
    """A binary mask of a picture, given on the part of the picture that contains all its pixels.

    Attributes:
        top, left: the first row and the first column of the part.
        bits: the mask on the part, bool `[h, w]`.
    """

    top: int
    left: int
    bits: ndarray


@dataclasses.dataclass(frozen=True)
class Resize:
    """The resize of a picture to the network's input.

    Attributes:
        rule: "stretch" fills the input and ignores the picture's proportions. All other rules keep
            the proportions; they differ in how they round the size and in the library that
            interpolates: "opencv" (mmdetection), "pillow" (detectron2), "pillow_truncated"
            (maskrcnn-benchmark) and "float" (torchvision).
        shorter_sides: the possible lengths of the shorter side in pixels; training draws one of
            them, and evaluation takes the largest.
        longer_side: the limit of the longer side in pixels.
    """

    rule: Literal["stretch", "opencv", "pillow", "pillow_truncated", "float"] = "stretch"
    shorter_sides: tuple[int, ...] = ()
    longer_side: int = 0


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The form of the batches that a detector requires, for the data and the evaluation.

    The resize of pictures (`resize`) and the region that masks cover (`mask_frame`) are independent
    of each other.

    Attributes:
        input_sizes: the heights and widths that the network's input has in training; each batch has
            one of them. Evaluation can use others, see `size_divisor`.
        mask_size: the height and width of the ground-truth masks (for YOLACT, those of the
            prototypes), or None for a detector without masks. Masks over the input have this size
            in the first of `input_sizes`; see `mask_size_in` for the others.
        semantic_size: the height and width of the masks of each class (for YOLACT, those of P3)
            over the first of `input_sizes`, or None if the detector does not use them; see
            `semantic_size_in` for the others.
        num_classes: the number of classes of the dataset, and of rows of `Targets.semantic`.
        resize: the resize of a picture to the input.
        mask_frame: the region that a mask's cells cover: "image" is the network's input, and "box"
            is the object's box. "integer_box" is also the object's box, but a detected mask is
            stretched over the whole pixels of its box in the picture.
        pixel_offset: 1 if boxes end in their last pixel (x + width - 1), and 0 if they are
            continuous.
        size_divisor: for evaluation, the detector also takes inputs whose height and width are
            multiples of this; 0 if it takes `input_sizes` only.
        evaluation_canvas: what evaluation pads pictures to, unless the configuration says it.
        mask_targets: the form of the ground-truth masks: "cells" is `Targets.masks`; "polygons" is
            `Targets.polygons`, with cells for the objects that have none there; "bitmaps" is
            `Targets.bitmaps`, without cells.
        mask_pool: the room for the masks of an image: points of polygons, or bytes of bitmaps.

    Raises:
        ValueError: the number of cells over another of `input_sizes` is not a whole number.
    """

    input_sizes: tuple[tuple[int, int], ...]
    mask_size: tuple[int, int] | None
    semantic_size: tuple[int, int] | None
    num_classes: int
    resize: Resize = Resize()
    mask_frame: Literal["image", "box", "integer_box"] = "image"
    pixel_offset: float = 0.0
    size_divisor: int = 0
    evaluation_canvas: Canvas = "shapes"
    mask_targets: Literal["cells", "polygons", "bitmaps"] = "cells"
    mask_pool: int = 0

    def __post_init__(self) -> None:
        for input_size in self.input_sizes:
            self.mask_size_in(input_size)
            self.semantic_size_in(input_size)

    def mask_size_in(self, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Returns the height and width of the ground-truth masks in a batch of this input size."""
        return self._in_input("mask_size", self.mask_size, input_size) if self.mask_frame == "image" else self.mask_size

    def semantic_size_in(self, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Returns the height and width of the masks of each class in a batch of this input size."""
        return self._in_input("semantic_size", self.semantic_size, input_size)

    def _in_input(self, name: str, size: tuple[int, int] | None, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Converts a size that is given for the first input size to another input size."""
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


class PolygonPool(NamedTuple):
    """The polygons of the `N` objects of an image, one after the other, with room for `P` points.

    Attributes:
        points: x, y in pixels of the network's input. Each polygon ends in its first point.
        parts: for the edge from each point to the next, the number of its polygon within its
            object, from 1 on; 0 if there is no edge.
        starts: the first point of each object.
        counts: the number of points of each object; 0 if it has no polygons here.
    """

    points: Float32[AnyArray, "*B P 2"]
    parts: UInt8[AnyArray, "*B P"]
    starts: Int32[AnyArray, "*B N"]
    counts: Int32[AnyArray, "*B N"]


class BitmapPool(NamedTuple):
    """The bitmaps of the `N` objects of an image, one after the other, with room for `P` bytes.

    Attributes:
        bits: rows of pixels, each packed along x to whole bytes (`numpy.packbits`, big endian).
        starts: the first byte of each object.
        sizes: the number of rows and columns of each object; 0 if it has no pixels.
        frames: `x1, y1, x2, y2` in pixels of the network's input: where the first column and row
            begin and the last ones end. If the picture is mirrored, x1 can be larger than x2.
    """

    bits: UInt8[AnyArray, "*B P"]
    starts: Int32[AnyArray, "*B N"]
    sizes: Int32[AnyArray, "*B N 2"]
    frames: Float32[AnyArray, "*B N 4"]


@struct.dataclass
class Targets:
    """The ground truth of one image, with `N` = `config.data.max_objects` rows.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input; see `InputSpec.pixel_offset`.
        classes: 0 .. C-1, in the order of the dataset's category ids.
        valid: whether the row holds an object (ordinary or crowd); all other rows are padding.
        crowd: whether the row is a crowd region. No loss learns from it, and YOLACT ignores
            negative priors in it.
        masks: instance masks, packed along x (`numpy.packbits`, big endian), over the input or each
            over its box, see `InputSpec.mask_frame`; None for a detector without masks or with
            bitmaps.
        semantic: the union of the masks of each class at the resolution of the semantic head,
            packed along x; None if the detector does not use it.
        polygons: the outlines of objects; see `InputSpec.mask_targets`.
        bitmaps: the pixels of objects; see `InputSpec.mask_targets`.
    """

    boxes: Float32[AnyArray, "*B N 4"]
    classes: Int32[AnyArray, "*B N"]
    valid: Bool[AnyArray, "*B N"]
    crowd: Bool[AnyArray, "*B N"]
    masks: UInt8[AnyArray, "*B N h w8"] | None
    semantic: UInt8[AnyArray, "*B C hs ws8"] | None
    polygons: PolygonPool | None = None
    bitmaps: BitmapPool | None = None


@struct.dataclass
class Batch:
    """The input of one training or validation step.

    Attributes:
        images: the network's inputs, RGB, 0..255. They are uint8 in training; evaluation keeps the
            float32 values of the resize.
        image_sizes: the height and width of each picture within the network's input; the padding is
            on its right and below.
        indices: the index of each image in its dataset, so that the host can name it; -1 for
            padding.
        valid: False for rows that are only padding.
        targets: the ground truth of each image.
    """

    images: UInt8[AnyArray, "B H W 3"] | Float32[AnyArray, "B H W 3"]
    image_sizes: Int32[AnyArray, "B 2"]
    indices: Int32[AnyArray, "B"]
    valid: Bool[AnyArray, "B"]
    targets: Targets


@struct.dataclass
class Detections:
    """The detections in one image in descending order of their scores, with `D` rows.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input; they can extend beyond the input.
            See `InputSpec.pixel_offset`.
        scores: 0..1.
        classes: 0 .. C-1.
        valid: whether the row holds a detection; valid rows come first.
        masks: the probability of each cell, over the input (0 outside the box) or over the
            detection's box, see `InputSpec.mask_frame`; None if the detector has no masks.
        mask_scores: the scores by which masks are ranked, if these are not `scores`; else None.
    """

    boxes: Float32[AnyArray, "*B D 4"]
    scores: Float32[AnyArray, "*B D"]
    classes: Int32[AnyArray, "*B D"]
    valid: Bool[AnyArray, "*B D"]
    masks: Float32[AnyArray, "*B D h w"] | None
    mask_scores: Float32[AnyArray, "*B D"] | None = None
