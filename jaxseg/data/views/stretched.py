"""Pictures stretched to the network's input, with the augmentation of dbolya/yolact.

Expansion, crop, mirroring and resize are a single map, by which a window of the picture's plane
fills the input. The window is drawn first and applied once. Outside the picture, pixels have the
mean colour and masks are 0. docs/data.md lists the differences from the original.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8

from jaxseg.config import AugmentConfig
from jaxseg.data.views.image_masks import warp_masks
from jaxseg.data.views.photometric import Photometric, draw_photometric, to_uint8
from jaxseg.data.views.window import Window, warp_image
from jaxseg.structures import Canvas, InputSpec

# The smallest side of a box in pixels of the input. The original's configuration means 4 of 550
# pixels, but its training code compares pixels with this quotient.
MINIMUM_SIDE = 4 / 550
CROP_TRIES = 50
AUGMENTATION_TRIES = 10


@dataclasses.dataclass(frozen=True)
class StretchedView:
    """A window of the picture's plane that fills the input; see `View`.

    Attributes:
        window: the part of the picture's plane that the network sees.
        photometric: the change of the picture's colours.
    """

    picture_size: tuple[int, int]
    input_size: tuple[int, int]
    window: Window
    photometric: Photometric = Photometric()

    @property
    def image_size(self) -> tuple[int, int]:
        return self.input_size

    @property
    def mirror(self) -> bool:
        return self.window.mirror

    def training_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return to_uint8(self.evaluation_image(image))

    def evaluation_image(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        return warp_image(image, self.window, self.input_size, self.photometric)

    def keeps(self, boxes: Float32[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n"]:
        """Keeps objects whose centre lies inside the window and whose clipped box has an area."""
        seen = self.boxes_in_input(boxes)
        return self.window.holds(_centres(boxes)) & (seen[:, 2:] - seen[:, :2] > MINIMUM_SIDE).all(axis=1)

    def boxes_in_input(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        window = self.window
        x = np.clip(boxes[:, 0::2].astype(np.float64), window.x1, window.x2) - window.x1
        y = np.clip(boxes[:, 1::2].astype(np.float64), window.y1, window.y2) - window.y1
        if window.mirror:
            x = window.width - x[:, ::-1]
        x *= self.input_size[1] / window.width
        y *= self.input_size[0] / window.height
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)

    def points_in_input(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        window = self.window
        x, y = points[:, 0] - window.x1, points[:, 1] - window.y1
        x = window.width - x if window.mirror else x
        return np.stack([x * (self.input_size[1] / window.width), y * (self.input_size[0] / window.height)], axis=1)

    def masks_over_input(
        self, masks: UInt8[np.ndarray, "n H W"], rows: Int[np.ndarray, "m"], size: tuple[int, int]
    ) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
        return warp_masks(masks, rows, self.window, image_size=self.input_size, input_size=self.input_size, size=size)

    def mask_frames(self, boxes: Float32[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
        return self._in_picture(boxes.astype(np.float64))

    def boxes_in_picture(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Multiplies boxes by the window's size over the input's; computes the quotient first."""
        return self._in_picture(boxes.astype(np.float32))

    def _in_picture(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """Converts boxes to the picture's coordinates, in the arithmetic of their own dtype."""
        window = self.window
        if window.mirror:
            boxes = np.stack([self.input_size[1] - boxes[:, 2], boxes[:, 1], self.input_size[1] - boxes[:, 0], boxes[:, 3]], axis=1)
        scale = np.array((window.width / self.input_size[1], window.height / self.input_size[0]), boxes.dtype)
        return boxes * np.tile(scale, 2) + np.array((window.x1, window.y1, window.x1, window.y1), boxes.dtype)


@dataclasses.dataclass(frozen=True)
class StretchedRule:
    """The rule that stretches each picture over the whole input; see `ViewRule`.

    Raises:
        ValueError: the spec has several input sizes, or boxes that end in their last pixel, which
            no original combines with stretched pictures.
    """

    spec: InputSpec

    def __post_init__(self) -> None:
        if len(self.spec.input_sizes) != 1:
            raise ValueError(f"Stretched pictures fill one size of input; input_sizes = {self.spec.input_sizes} has several.")
        if self.spec.pixel_offset:
            raise ValueError(f"Stretched pictures have continuous boxes; pixel_offset = {self.spec.pixel_offset} must be 0.")
        if self.spec.mask_targets == "bitmaps":
            raise ValueError("Bitmaps are of whole pictures, and stretched pictures can be cropped; mask_targets must be another one.")

    @property
    def canvas(self) -> Canvas:
        return "shapes"

    def input_size(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        return self.spec.input_sizes[0]

    def whole(self, picture_size: tuple[int, int]) -> StretchedView:
        return StretchedView(picture_size, self.input_size(picture_size), Window.whole(picture_size))

    def draw(
        self,
        rng: np.random.Generator,
        picture_size: tuple[int, int],
        *,
        boxes: Float32[np.ndarray, "n 4"],
        crowd: Bool[np.ndarray, "n"],
        augment: AugmentConfig,
    ) -> StretchedView:
        """Draws a view that keeps at least one object.

        If the draws of all tries keep none, the whole picture is shown.
        """
        photometric = draw_photometric(rng) if augment.photometric else Photometric()
        whole = dataclasses.replace(self.whole(picture_size), photometric=photometric)
        for _ in range(AUGMENTATION_TRIES):
            window = draw_expansion(rng, whole.window) if augment.expand else whole.window
            window = draw_crop(rng, window, boxes, crowd) if augment.crop else window
            window = window.mirrored() if augment.mirror and rng.random() < 0.5 else window
            view = dataclasses.replace(whole, window=window)
            if len(boxes) == 0 or view.keeps(boxes).any():
                return view
        return whole


def draw_expansion(rng: np.random.Generator, window: Window) -> Window:
    """Draws, with a probability of one half, a window 1 to 4 times as large around the old one."""
    if rng.random() < 0.5:
        return window
    ratio = rng.uniform(1, 4)
    return window.expanded(ratio, left=rng.uniform(0, window.width * (ratio - 1)), top=rng.uniform(0, window.height * (ratio - 1)))


def draw_crop(rng: np.random.Generator, window: Window, boxes: Float32[np.ndarray, "n 4"], crowd: Bool[np.ndarray, "n"]) -> Window:
    """Draws a crop that contains the centre of an ordinary object, or the whole window.

    The probability of the whole window is one sixth. The sides of a crop are 0.3 to 1 times those
    of the window, and its height is 0.5 to 2 times its width. After 50 failed tries the draw starts
    again. The original also lists minimum overlaps of 0.1 to 0.9, but its test of them never
    rejects a crop. As in the original, a picture without objects accepts every crop, and a picture
    that has only crowd regions is never cropped.
    """
    centres = _centres(boxes[~crowd])
    while rng.integers(6) > 0:
        for _ in range(CROP_TRIES):
            width, height = rng.uniform(0.3, 1.0) * window.width, rng.uniform(0.3, 1.0) * window.height
            if not 0.5 <= height / width <= 2:
                continue
            cropped = window.cropped(_offset(rng, window.width - width), _offset(rng, window.height - height), width, height)
            if len(boxes) == 0 or cropped.holds(centres).any():
                return cropped
    return window


def _offset(rng: np.random.Generator, room: float) -> float:
    """Draws a number between 1 and `room`, whichever of the two is larger.

    The bound is 1 and not 0 as in the original, which passes only one bound to its generator.
    """
    return room + (1 - room) * rng.random()


def _centres(boxes: Float32[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    return (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
