"""The placement: a picture in its proportions within the network's input, as R-CNN's originals put it there, and its boxes.

A picture is resized, then mirrored, then padded. Training draws the shorter side and the mirror; nothing is cut off, so all
objects stay but those that the originals leave out.
"""

import dataclasses
from typing import Self

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from jaxseg.config import AugmentConfig
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.views.image_masks import warp_masks
from jaxseg.data.views.resize import batch_shape, fitted_size, pad_picture, resize_pixels
from jaxseg.data.views.transforms import apply_photometric, draw_photometric, to_uint8
from jaxseg.data.views.window import Window
from jaxseg.structures import InputSpec

# Pixels of an annotated box that count as none: its corners are float32.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input, whose upper left corner is its own.

    Attributes:
        size: height and width of the picture in the input's pixels.
        mirror: left and right have changed places.
    """

    size: tuple[int, int]
    mirror: bool = False

    @classmethod
    def whole(cls, picture_size: tuple[int, int], spec: InputSpec) -> Self:
        """Where evaluation puts a picture of this height and width."""
        return cls(fitted_size(picture_size, spec))


def draw_placement(rng: np.random.Generator, picture_size: tuple[int, int], spec: InputSpec, augment: AugmentConfig) -> Placement:
    """One of `spec.resize.shorter_sides`, all alike, and with probability one half the mirror, where `augment` has it.

    Args:
        rng: the only source of randomness.
        picture_size: height and width of the picture.
        spec: what the detector wants.
        augment: which steps take part; only the mirror is one of this input.
    """
    side = spec.resize.shorter_sides[int(rng.integers(len(spec.resize.shorter_sides)))]
    return Placement(fitted_size(picture_size, spec, side), augment.mirror and bool(rng.random() < 0.5))


def place_picture(image: UInt8[np.ndarray, "h w 3"], placement: Placement, spec: InputSpec) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in the input of `batch_shape`, rounded to uint8, with zeros where it is not."""
    resized = resize_pixels(image, placement.size, spec.resize.rule)
    resized = resized if resized.dtype == np.uint8 else to_uint8(resized)
    if placement.mirror:
        resized = cv2.flip(resized, 1)
    return pad_picture(resized, batch_shape(image.shape[:2], spec))


def training_picture(
    image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, spec: InputSpec, augment: AugmentConfig
) -> tuple[UInt8[np.ndarray, "H W 3"], Placement]:
    """The input made of a picture in training, and where the picture lies in it; the change of colours is YOLACT's."""
    picture_size = image.shape[:2]
    if augment.photometric:
        image = to_uint8(apply_photometric(image, draw_photometric(rng)))
    placement = draw_placement(rng, picture_size, spec, augment)
    return place_picture(image, placement, spec), placement


def clipped_boxes(boxes: Float32[np.ndarray, "n 4"], picture_size: tuple[int, int], pixel_offset: float) -> Float64[np.ndarray, "n 4"]:
    """Annotated boxes (x, y, x + width, y + height) within the picture, still in its pixels; they end in their last pixel with offset 1."""
    height, width = picture_size
    boxes = boxes.astype(np.float64) - np.array((0, 0, pixel_offset, pixel_offset))
    return np.clip(boxes, 0, np.array((width, height, width, height)) - pixel_offset)


def usable_boxes(boxes: Float32[np.ndarray, "n 4"], picture_size: tuple[int, int], pixel_offset: float) -> Bool[np.ndarray, "n"]:
    """Objects that stay: annotated with both sides of a pixel or more, and with an area within the picture.

    The first is mmdetection's rule, the second that of all four; maskrcnn-benchmark's boxes, which end in their last
    pixel, must be larger than one.
    """
    clipped = clipped_boxes(boxes, picture_size, pixel_offset)
    large = (boxes[:, 2:].astype(np.float64) - boxes[:, :2] >= 1 - _ROUNDING).all(axis=1)
    return large & (clipped[:, 2:] - clipped[:, :2] > _ROUNDING).all(axis=1)


def place_boxes(
    boxes: Float32[np.ndarray, "n 4"], picture_size: tuple[int, int], placement: Placement, pixel_offset: float
) -> Float32[np.ndarray, "n 4"]:
    """Annotated boxes in pixels of the network's input, clipped to the picture.

    They are scaled by each side's own factor, and mirrored after that, so that with offset 1 the mirror of x is W - x - 1
    for the picture's width W in the input.
    """
    height, width = placement.size
    scale = np.array((width / picture_size[1], height / picture_size[0]))
    placed = clipped_boxes(boxes, picture_size, pixel_offset) * np.tile(scale, 2)
    if placement.mirror:
        placed[:, [0, 2]] = width - pixel_offset - placed[:, [2, 0]]
    return placed.astype(np.float32)


def mask_frames(
    placed: Float32[np.ndarray, "n 4"], picture_size: tuple[int, int], placement: Placement, pixel_offset: float
) -> Float64[np.ndarray, "n 4"]:
    """What the masks of placed boxes cover, in pixels of the picture, which is not mirrored there.

    In the input it is the box, to the far side of its last pixel with offset 1.
    """
    height, width = placement.size
    frames = placed.astype(np.float64) + np.array((0, 0, pixel_offset, pixel_offset))
    if placement.mirror:
        frames[:, [0, 2]] = width - frames[:, [2, 0]]
    return frames / np.tile((width / picture_size[1], height / picture_size[0]), 2)


def placed_sample(sample: Sample, image: UInt8[np.ndarray, "H W 3"], placement: Placement, pixel_offset: float) -> Sample:
    """A sample in the network's input, to look at: `image` is what `place_picture` made, boxes are continuous, masks at its size."""
    picture_size = sample.image.shape[:2]
    rows = np.flatnonzero(usable_boxes(sample.boxes, picture_size, pixel_offset))
    whole = Window.whole(picture_size)
    window = whole.mirrored() if placement.mirror else whole
    masks = None
    if sample.masks is not None:
        masks = np.zeros((len(rows), *image.shape[:2]), np.uint8)
        masks[:, : placement.size[0], : placement.size[1]] = warp_masks(sample.masks, rows, window, placement.size, placement.size)
    boxes = place_boxes(sample.boxes[rows], picture_size, placement, pixel_offset)
    boxes[:, 2:] += pixel_offset
    return dataclasses.replace(sample, image=image, boxes=boxes, classes=sample.classes[rows], crowd=sample.crowd[rows], masks=masks)
