"""The window: which part of the picture's plane the network sees, and how a resize samples it."""

import dataclasses
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels in the picture's coordinates; it may reach beyond the picture.

    Attributes:
        x1, y1, x2, y2: its corners; x2 and y2 are the first column and row that no longer belong to it.
        mirror: the window is looked at from behind: left and right change places.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    mirror: bool = False

    @classmethod
    def whole(cls, image_size: tuple[int, int]) -> Self:
        """The window that shows all of a picture of this height and width."""
        return cls(0, 0, image_size[1], image_size[0])

    @property
    def width(self) -> int:
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        return self.y2 - self.y1

    @property
    def is_empty(self) -> bool:
        return self.width <= 0 or self.height <= 0

    def expanded(self, ratio: float, left: float, top: float) -> Self:
        """The window `ratio` times as large, with this one `left` and `top` pixels from its corner (all cut to whole pixels)."""
        x1, y1 = self.x1 - int(left), self.y1 - int(top)
        return dataclasses.replace(self, x1=x1, y1=y1, x2=x1 + int(self.width * ratio), y2=y1 + int(self.height * ratio))

    def cropped(self, left: float, top: float, width: float, height: float) -> Self:
        """A part of the window, `left` and `top` pixels from its corner; its corners are cut to whole pixels."""
        return dataclasses.replace(
            self, x1=self.x1 + int(left), y1=self.y1 + int(top), x2=self.x1 + int(left + width), y2=self.y1 + int(top + height)
        )

    def mirrored(self) -> Self:
        """The same part of the picture, left and right changed."""
        return dataclasses.replace(self, mirror=not self.mirror)

    def clipped(self, image_size: tuple[int, int]) -> Self:
        """The part of the window that lies on a picture of this height and width; empty where there is none."""
        return dataclasses.replace(
            self, x1=max(self.x1, 0), y1=max(self.y1, 0), x2=min(self.x2, image_size[1]), y2=min(self.y2, image_size[0])
        )

    def holds(self, points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        """Which points (x, y) lie strictly inside."""
        return np.all((points > (self.x1, self.y1)) & (points < (self.x2, self.y2)), axis=1)


def resize_taps(length: int, size: int) -> tuple[Int[np.ndarray, "{size}"], Int[np.ndarray, "{size}"], Float32[np.ndarray, "{size}"]]:
    """Where a bilinear resize of `length` pixels to `size` looks: half-pixel centres, no antialias, the edge repeated.

    Returns:
        The lower and upper pixel of each result, and the upper one's weight. As `cv2.resize` in every version has them.
    """
    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    lower = np.floor(position).astype(np.int64)
    return np.clip(lower, 0, length - 1), np.clip(lower + 1, 0, length - 1), position - lower.astype(np.float32)
