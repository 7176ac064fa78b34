"""The rule by which a detector sees pictures, and what it sees of one picture.

`ViewRule` is made once of a detector's `InputSpec`. For each picture it gives a `View`, which holds
everything that chance decided about the picture and knows the way into the network's input and
back. Nobody outside this folder asks which kind of view it is.

Three sizes, each a height and a width: the picture's own is `picture_size`, the network's input has
`input_size`, and within that the picture has `image_size`; it starts at the upper left corner, and
zeros lie right of it and below.
"""

from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, UInt8

from jaxseg.config import AugmentConfig
from jaxseg.structures import InputSpec


class View(Protocol):
    """What the network sees of one picture. Boxes are `x1, y1, x2, y2`."""

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the picture."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the picture within the input."""

    @property
    def mirror(self) -> bool:
        """Whether left and right have changed places."""

    def training_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """The input made of an RGB picture, with the colours that chance chose, rounded."""

    def evaluation_image(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "H W 3"]:
        """The same without the last rounding."""

    def keeps(self, boxes: Float32[np.ndarray, "n 4"]) -> Bool[np.ndarray, "n"]:
        """Which objects stay, by their annotated boxes in the picture."""

    def boxes_in_input(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """Annotated boxes in pixels of the input, clipped to what is seen.

        They end as `InputSpec.pixel_offset` says.
        """

    def masks_over_input(
        self, masks: UInt8[np.ndarray, "n H W"], rows: Int[np.ndarray, "m"], size: tuple[int, int]
    ) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
        """Masks of the picture as cells over the whole input.

        Args:
            masks: of 0 and 1, at the picture's size.
            rows: which of them.
            size: height and width of the result; the input's own size is possible.
        """

    def mask_frames(self, boxes: Float32[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
        """What boxes of the input cover in the picture, to the far side of their last pixel.

        The picture is not mirrored there.
        """

    def boxes_in_picture(self, boxes: Float32[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 4"]:
        """The way back of any boxes of the input, not clipped, as the originals compute it."""


class ViewRule(Protocol):
    """How a detector sees pictures."""

    @property
    def spec(self) -> InputSpec:
        """What the detector wants."""

    def input_size(self, picture_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the input that a picture belongs in, whatever is drawn for it."""

    def whole(self, picture_size: tuple[int, int]) -> View:
        """How evaluation shows a picture of this height and width."""

    def draw(
        self,
        rng: np.random.Generator,
        picture_size: tuple[int, int],
        *,
        boxes: Float32[np.ndarray, "n 4"],
        crowd: Bool[np.ndarray, "n"],
        augment: AugmentConfig,
    ) -> View:
        """How training shows a picture, this time.

        Args:
            rng: the only source of randomness.
            picture_size: height and width of the picture.
            boxes: its objects' boxes, as annotated.
            crowd: which of them are crowd regions.
            augment: which steps take part.
        """
