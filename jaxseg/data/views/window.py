"""The window, which is the part of the picture's plane that the network sees, and its pixels."""

import dataclasses
from typing import Self

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from jaxseg.data.views.interpolation import opencv_taps
from jaxseg.data.views.photometric import Photometric, apply_photometric

# RGB. The original fills with this mean, however the backbone normalises its input.
FILL = np.array((123.68, 116.78, 103.94), np.float32)


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels in the picture's coordinates; it may extend beyond the picture.

    Attributes:
        x1, y1, x2, y2: the corners; x2 and y2 are the first column and row that no longer belong to
            the window.
        mirror: whether left and right are swapped.
    """

    x1: int
    y1: int
    x2: int
    y2: int
    mirror: bool = False

    @classmethod
    def whole(cls, picture_size: tuple[int, int], mirror: bool = False) -> Self:
        """Makes the window that shows a whole picture of this height and width."""
        return cls(0, 0, picture_size[1], picture_size[0], mirror)

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
        """Returns a window `ratio` times as large, in which this one starts at `left` and `top`.

        All numbers are truncated to whole pixels.
        """
        x1, y1 = self.x1 - int(left), self.y1 - int(top)
        return dataclasses.replace(self, x1=x1, y1=y1, x2=x1 + int(self.width * ratio), y2=y1 + int(self.height * ratio))

    def cropped(self, left: float, top: float, width: float, height: float) -> Self:
        """Returns the part at `left` and `top` of this window, truncated to whole pixels."""
        return dataclasses.replace(
            self, x1=self.x1 + int(left), y1=self.y1 + int(top), x2=self.x1 + int(left + width), y2=self.y1 + int(top + height)
        )

    def mirrored(self) -> Self:
        """Returns the same part of the picture with left and right swapped."""
        return dataclasses.replace(self, mirror=not self.mirror)

    def clipped(self, picture_size: tuple[int, int]) -> Self:
        """Returns the part of the window within a picture of this size; it can be empty."""
        return dataclasses.replace(
            self, x1=max(self.x1, 0), y1=max(self.y1, 0), x2=min(self.x2, picture_size[1]), y2=min(self.y2, picture_size[0])
        )

    def holds(self, points: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
        """Returns which points (x, y) lie strictly inside the window."""
        return np.all((points > (self.x1, self.y1)) & (points < (self.x2, self.y2)), axis=1)


def warp_image(
    image: UInt8[np.ndarray, "h w 3"], window: Window, size: tuple[int, int], photometric: Photometric
) -> Float32[np.ndarray, "H W 3"]:
    """Resizes the part of the picture that the window shows, as `cv2.resize` does.

    The interpolation is bilinear, with half-pixel centres and without antialiasing.

    Args:
        image: the picture, RGB.
        window: the part to show. Beyond the picture's edge it has the mean colour, which
            `photometric` does not change.
        size: the height and width of the result.
        photometric: the change of the picture's colours, which is made before the resize.

    Returns:
        The RGB image, which is neither clipped nor rounded.
    """
    inside = window.clipped(image.shape[:2])
    if inside.is_empty:
        return _filled(size)
    piece = image[inside.y1 : inside.y2, inside.x1 : inside.x2]
    if (inside.x1, inside.y1, inside.x2, inside.y2) == (window.x1, window.y1, window.x2, window.y2):
        result = cv2.resize(apply_photometric(piece, photometric), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    else:
        result = _warp_expanded(piece, inside, window, size, photometric)
    return cv2.flip(result, 1) if window.mirror else result


def _warp_expanded(
    piece: UInt8[np.ndarray, "h w 3"], inside: Window, window: Window, size: tuple[int, int], photometric: Photometric
) -> Float32[np.ndarray, "H W 3"]:
    """Resizes a window that extends beyond the picture, without making the window's pixels.

    The window can be 16 times as large as the picture, and most of it has the mean colour.
    """
    lower, upper, weight = opencv_taps(window.height, size[0])
    first, last = inside.y1 - window.y1, inside.y2 - window.y1
    touched = np.flatnonzero((upper >= first) & (lower < last))
    lower, upper, weight = lower[touched] - first, upper[touched] - first, weight[touched]
    lower_weight = np.where((lower >= 0) & (lower < len(piece)), 1 - weight, 0).astype(np.float32)
    upper_weight = np.where((upper >= 0) & (upper < len(piece)), weight, 0).astype(np.float32)
    # The colours of only those rows are changed that the result reads. The code interpolates the
    # difference from the mean colour, which is 0 outside the picture.
    rows, where = np.unique(np.clip(np.concatenate([lower, upper]), 0, len(piece) - 1), return_inverse=True)
    difference = apply_photometric(piece[rows], photometric)
    difference -= _filled((1, piece.shape[1]))
    canvas = np.zeros((len(touched), window.width, 3), np.float32)
    shown = canvas[:, inside.x1 - window.x1 : inside.x2 - window.x1]
    np.multiply(difference[where[: len(touched)]], lower_weight[:, None, None], out=shown)
    shown += difference[where[len(touched) :]] * upper_weight[:, None, None]
    result = _filled(size)
    if len(touched):
        result[touched[0] : touched[-1] + 1] += cv2.resize(canvas, (size[1], len(touched)), interpolation=cv2.INTER_LINEAR)
    return result


def _filled(size: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    """Makes an image of the mean colour; whole rows are 20 times as fast as single pixels."""
    rows = np.empty((size[0], size[1] * 3), np.float32)
    rows[:] = np.tile(FILL, size[1])
    return rows.reshape(*size, 3)
