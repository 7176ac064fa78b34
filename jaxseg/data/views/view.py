"""The interfaces of views: how one picture becomes the network's input, and the rule behind it.

A `ViewRule` is made once, from a detector's `InputSpec`. For each picture it gives a `View`, which
holds all random choices for the picture, and which maps the picture to the network's input and
boxes back to the picture. Code outside this folder does not depend on the kind of view.

There are three sizes, each a height and a width: `picture_size` is the size of the original
picture, `input_size` that of the network's input, and `image_size` that of the picture within the
input. The picture starts at the upper left corner of the input; zeros fill the rest on the right
and below.
"""

from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt8

from jaxseg.config import AugmentConfig
from jaxseg.structures import Canvas, InputSpec


class View(Protocol):
    """The part of one picture that the network sees, and its place in the input.

    Boxes are `x1, y1, x2, y2`.
    """

    @property
    def picture_size(self) -> tuple[int, int]:
        """The height and width of the picture."""

    @property
    def input_size(self) -> tuple[int, int]:
        """The height and width of the network's input."""

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of the picture within the input."""

    @property
    def mirror(self) -> bool:
        """Whether left and right are swapped."""

    def training_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Makes the network's input from an RGB picture with the drawn colours, and rounds it."""

    def evaluation_image(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """Makes the same input as `training_image`, but without the last rounding."""

    def keeps(self, boxes: Float32[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n"]:
        """Returns which objects are kept, given their annotated boxes in the picture."""

    def boxes_in_input(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Converts annotated boxes to pixels of the input, and clips them to the visible part.

        `InputSpec.pixel_offset` says whether the results end in their last pixel.
        """

    def points_in_input(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Converts points (x, y) of the picture to pixels of the input, without clipping."""

    def masks_over_input(
        self, masks: UInt8[np.ndarray, "n H W"], rows: Int[np.ndarray, "m"], size: tuple[int, int]
    ) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
        """Resizes masks of the picture to cells over the whole input.

        Args:
            masks: masks of 0 and 1, at the picture's size.
            rows: the indices of the masks to resize.
            size: the height and width of the result; it may be the input's own size.
        """

    def mask_frames(self, boxes: Float32[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
        """Returns the region of the unmirrored picture that boxes of the input cover.

        The region extends to the far side of the last pixel of each box.
        """

    def boxes_in_picture(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Converts boxes of the input to the picture as the originals do, without clipping."""


class ViewRule(Protocol):
    """The rule that turns pictures into a detector's inputs."""

    @property
    def spec(self) -> InputSpec:
        """The input that the detector requires."""

    @property
    def canvas(self) -> Canvas:
        """Whether each input has one of `spec.input_sizes` ("shapes"), or a size of its own."""

    def input_size(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        """Returns the height and width of a picture's input, which do not depend on the draw."""

    def whole(self, picture_size: tuple[int, int]) -> View:
        """Returns the view that evaluation uses for a picture of this height and width."""

    def draw(
        self,
        rng: np.random.Generator,
        picture_size: tuple[int, int],
        *,
        boxes: Float32[np.ndarray, "n 4"],
        crowd: Bool[np.ndarray, "n"],
        augment: AugmentConfig,
    ) -> View:
        """Draws a random view of a picture for training.

        Args:
            rng: the only source of randomness.
            picture_size: the height and width of the picture.
            boxes: the annotated boxes of its objects.
            crowd: which of the objects are crowd regions.
            augment: which steps of the augmentation to use.
        """
