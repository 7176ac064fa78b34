"""Pictures that keep their proportions in the network's input, as in R-CNN's originals.

A picture is resized, then mirrored, then padded with zeros. Training draws the length of the
shorter side and whether to mirror. Nothing is cropped, so all objects are kept except those that
the originals leave out.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt8

from jaxseg.config import AugmentConfig
from jaxseg.data.views.image_masks import warp_masks
from jaxseg.data.views.photometric import Photometric, apply_photometric, draw_photometric, to_uint8
from jaxseg.data.views.resize import pad_image, proportional_size, resize_pixels
from jaxseg.data.views.window import Window
from jaxseg.structures import Canvas, InputSpec

# The tolerance in pixels for the sides of annotated boxes, whose corners are float32.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class PlacedView:
    """A picture in the upper left corner of the input; see `View`.

    Attributes:
        spec: the input that the detector requires.
        photometric: the change of the picture's colours.
    """

    spec: InputSpec
    picture_size: tuple[int, int]
    input_size: tuple[int, int]
    image_size: tuple[int, int]
    mirror: bool = False
    photometric: Photometric = Photometric()

    def training_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        resized = self._resized(image)
        return pad_image(resized if resized.dtype == np.uint8 else to_uint8(resized), self.input_size)

    def evaluation_image(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        return pad_image(self._resized(image).astype(np.float32, copy=False), self.input_size)

    def _resized(self, image: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
        if self.photometric != Photometric():
            image = to_uint8(apply_photometric(image, self.photometric))
        resized = resize_pixels(image, self.image_size, self.spec.resize.rule)
        return cv2.flip(resized, 1) if self.mirror else resized

    def keeps(self, boxes: Float32[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n"]:
        """Keeps objects with sides of at least a pixel and with an area within the picture.

        The first rule is mmdetection's, and the second is that of all four originals. The boxes of
        maskrcnn-benchmark, which end in their last pixel, must be larger than one pixel.
        """
        clipped = self._clipped(boxes)
        large = (boxes[:, 2:].astype(np.float64) - boxes[:, :2] >= 1 - _ROUNDING).all(axis=1)
        return large & (clipped[:, 2:] - clipped[:, :2] > _ROUNDING).all(axis=1)

    def boxes_in_input(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Scales boxes with a factor for each axis, and then mirrors them if the view does.

        If boxes end in their last pixel, the mirror of x is therefore W - x - 1, where W is the
        picture's width within the input.
        """
        placed = self._clipped(boxes) * np.tile(self._scale, 2)
        return self._mirrored(placed, self.spec.pixel_offset).astype(np.float32)

    def points_in_input(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Scales points with a factor for each axis, and mirrors them by the rule of boxes."""
        placed = points * self._scale
        if self.mirror:
            placed[:, 0] = self.image_size[1] - self.spec.pixel_offset - placed[:, 0]
        return placed

    def masks_over_input(
        self, masks: UInt8[np.ndarray, "n H W"], rows: Int[np.ndarray, "m"], size: tuple[int, int]
    ) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
        window = Window.whole(self.picture_size, self.mirror)
        return warp_masks(masks, rows, window, image_size=self.image_size, input_size=self.input_size, size=size)

    def mask_frames(self, boxes: Float32[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
        frames = boxes.astype(np.float64) + np.array((0, 0, self.spec.pixel_offset, self.spec.pixel_offset))
        return self._mirrored(frames, 0) / np.tile(self._scale, 2)

    def boxes_in_picture(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Multiplies boxes by the picture's size over its size within the input, for each axis.

        The quotient is computed first, as in the originals, so that the boxes of a picture that was
        not resized keep every bit.
        """
        height, width = (np.float32(new / old) for new, old in zip(self.picture_size, self.image_size, strict=True))
        return self._mirrored(boxes.astype(np.float32), self.spec.pixel_offset) * np.array([width, height, width, height])

    @property
    def _scale(self) -> Float64[np.ndarray, "2"]:
        """The number of pixels of the input per pixel of the picture, along x and y."""
        return np.array((self.image_size[1] / self.picture_size[1], self.image_size[0] / self.picture_size[0]))

    def _clipped(self, boxes: Float32[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
        """Clips annotated boxes (x, y, x + width, y + height) to the picture.

        If the pixel offset is 1, the results end in their last pixel.
        """
        height, width = self.picture_size
        offset = self.spec.pixel_offset
        corners = boxes.astype(np.float64) - np.array((0, 0, offset, offset))
        return np.clip(corners, 0, np.array((width, height, width, height)) - offset)

    def _mirrored(self, boxes: np.ndarray, offset: float) -> np.ndarray:
        """Mirrors boxes in the input if the view is mirrored; the function is its own inverse."""
        if self.mirror:
            boxes = boxes.copy()
            boxes[:, [0, 2]] = self.image_size[1] - offset - boxes[:, [2, 0]]
        return boxes


@dataclasses.dataclass(frozen=True)
class PlacedRule:
    """The rule that places each picture in the upper left corner of an input; see `ViewRule`.

    Attributes:
        spec: the input that the detector requires.
        canvas: "shapes" takes one of `spec.input_sizes` for each picture. "own" cuts this input down
            to the smallest multiples of `spec.size_divisor` that hold the picture, as the originals
            pad a picture that is alone in its batch.
    """

    spec: InputSpec
    canvas: Canvas = "shapes"

    def input_size(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the input that holds the picture at the largest of `shorter_sides`.

        See `_shape` for pictures that no input is large enough for.
        """
        if self.canvas == "shapes":
            return self._shape(picture_size)
        size, divisor = self._image_size(picture_size, max(self.spec.resize.shorter_sides)), self.spec.size_divisor
        height, width = (-(-side // divisor) * divisor for side in size)
        return height, width

    def whole(self, picture_size: tuple[int, int]) -> PlacedView:
        return self._placed(picture_size, max(self.spec.resize.shorter_sides))

    def draw(
        self,
        rng: np.random.Generator,
        picture_size: tuple[int, int],
        *,
        boxes: Float32[np.ndarray, "n 4"],
        crowd: Bool[np.ndarray, "n"],
        augment: AugmentConfig,
    ) -> PlacedView:
        """Draws the shorter side uniformly, and the mirroring; colours change as in YOLACT."""
        photometric = draw_photometric(rng) if augment.photometric else Photometric()
        sides = self.spec.resize.shorter_sides
        placed = self._placed(picture_size, sides[int(rng.integers(len(sides)))])
        return dataclasses.replace(placed, mirror=augment.mirror and rng.random() < 0.5, photometric=photometric)

    def _placed(self, picture_size: tuple[int, int], shorter_side: int) -> PlacedView:
        image_size = self._image_size(picture_size, shorter_side)
        return PlacedView(self.spec, picture_size, self.input_size(picture_size), image_size)

    def _image_size(self, picture_size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
        """Returns the size with a shorter side of this many pixels, or as many as the shape holds."""
        shape = self._shape(picture_size)
        size = proportional_size(picture_size, self.spec.resize, shorter_side)
        if _holds(shape, size):
            return size
        scale = _largest_scale(picture_size, shape)
        height, width = (min(max(round(length * scale), 1), side) for length, side in zip(picture_size, shape, strict=True))
        return height, width

    def _shape(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the smallest of `input_sizes` that holds the picture at its largest size.

        Among several of the same area it is the last one, so that square pictures are grouped with
        portraits, as in the originals. If no input is large enough, it is the one in which the
        picture can be largest.
        """
        size = proportional_size(picture_size, self.spec.resize, max(self.spec.resize.shorter_sides))
        holding = [candidate for candidate in reversed(self.spec.input_sizes) if _holds(candidate, size)]
        if holding:
            return min(holding, key=lambda candidate: candidate[0] * candidate[1])
        return max(self.spec.input_sizes, key=lambda candidate: _largest_scale(picture_size, candidate))


def _holds(input_size: tuple[int, int], size: tuple[int, int]) -> bool:
    return size[0] <= input_size[0] and size[1] <= input_size[1]


def _largest_scale(picture_size: tuple[int, int], input_size: tuple[int, int]) -> float:
    return min(input_size[0] / picture_size[0], input_size[1] / picture_size[1])
