"""Binary masks over the network's input, equal bit for bit to those of YOLACT's original.

The original resizes each mask with `cv2.resize` on uint8 to the pixels of the input, which gives a
binary mask again. Each loss resizes this mask with torch's bilinear interpolation to its own
resolution, and sets the cells that exceed one half. A cell of the second grid depends on two by two
pixels of the first grid, and each of those on two by two pixels of the picture. So only these
pixels are computed, only where the object is, and the mask at the input's size is never made.
"""

import dataclasses
import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from jaxseg.data.views.interpolation import Interpolation, opencv_taps
from jaxseg.data.views.window import Window

# cv2 resizes uint8 with weights in units of 1 / 2048.
FIXED_POINT_ONE = 2048


@functools.lru_cache(maxsize=16)
def _needed_positions(length: int, size: int) -> tuple[Interpolation, Int[np.ndarray, "positions"]]:
    """Returns an interpolation over only the positions that it reads, and these positions."""
    cells = Interpolation.between(length, size)
    positions, where = np.unique(np.concatenate([cells.lower, cells.upper]), return_inverse=True)
    return dataclasses.replace(cells, lower=where[:size], upper=where[size:]), positions


class _Side(NamedTuple):
    """A side of a window, from pixel `start` to pixel `stop` of the picture.

    The side covers `length` pixels of the input.
    """

    start: int
    stop: int
    mirror: bool
    length: int


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis of the two resizes: from the picture to the input, and from there to the cells.

    `lower` and `upper` are the pixels of the picture that each position of the input reads. Their
    weights are in units of 1 / 2048, and are 0 beyond the picture's edge. `first` and `last` are
    the range of the picture's pixels on which a cell depends.
    """

    lower: Int[np.ndarray, "positions"]
    upper: Int[np.ndarray, "positions"]
    lower_weight: Int[np.ndarray, "positions"]
    upper_weight: Int[np.ndarray, "positions"]
    cells: Interpolation
    first: Int[np.ndarray, "cells"]
    last: Int[np.ndarray, "cells"]

    @classmethod
    def of(cls, side: _Side, *, length: int, input_length: int, size: int) -> "_Axis":
        """Makes the axis along a window's side, given the picture's and the input's lengths."""
        lower, upper, weight = opencv_taps(side.stop - side.start, side.length)
        if side.mirror:
            lower, upper = side.stop - 1 - lower, side.stop - 1 - upper
        else:
            lower, upper = side.start + lower, side.start + upper
        cells, needed = _needed_positions(input_length, size)
        padding = needed >= side.length
        inside = np.where(padding, 0, needed)
        # Positions in the padding read a pixel beyond the picture's edge, which is 0.
        lower, upper, weight = np.where(padding, -1, lower[inside]), np.where(padding, -1, upper[inside]), weight[inside]
        ends = np.stack([lower[cells.lower], upper[cells.lower], lower[cells.upper], upper[cells.upper]])
        return cls(
            lower=np.clip(lower, 0, length - 1),
            upper=np.clip(upper, 0, length - 1),
            lower_weight=np.where((lower >= 0) & (lower < length), np.rint((1 - weight) * FIXED_POINT_ONE), 0).astype(np.uint16),
            upper_weight=np.where((upper >= 0) & (upper < length), np.rint(weight * FIXED_POINT_ONE), 0).astype(np.uint16),
            cells=cells,
            first=ends.min(axis=0),
            last=ends.max(axis=0),
        )

    def touching(self, start: int, stop: int) -> tuple[slice, "_Axis"]:
        """Returns the cells that depend on pixels `start` to `stop`, and their own axis."""
        touched = np.flatnonzero((self.last >= start) & (self.first < stop))
        if not len(touched):
            return slice(0, 0), self
        part = slice(int(touched[0]), int(touched[-1]) + 1)
        begin = int(self.cells.lower[part.start])
        positions = slice(begin, int(self.cells.upper[part.stop - 1]) + 1)
        lower, upper = self.lower[positions], self.upper[positions]
        axis = _Axis(
            lower=np.minimum(np.maximum(lower, start), stop - 1) - start,
            upper=np.minimum(np.maximum(upper, start), stop - 1) - start,
            lower_weight=np.where((lower >= start) & (lower < stop), self.lower_weight[positions], np.uint16(0)),
            upper_weight=np.where((upper >= start) & (upper < stop), self.upper_weight[positions], np.uint16(0)),
            cells=Interpolation(
                self.cells.lower[part] - begin,
                self.cells.upper[part] - begin,
                self.cells.lower_weight[part],
                self.cells.upper_weight[part],
            ),
            first=self.first[part],
            last=self.last[part],
        )
        return part, axis


def warp_masks(
    masks: UInt8[np.ndarray, "n H W"],
    rows: Int[np.ndarray, "m"],
    window: Window,
    *,
    image_size: tuple[int, int],
    input_size: tuple[int, int],
    size: tuple[int, int],
) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
    """Resizes the part of masks that a window shows to cells over the whole input.

    The window is resized to `image_size`, and then the input that contains it to `size`; both
    results are binary.

    Args:
        masks: masks of 0 and 1, at the picture's size.
        rows: the indices of the masks to resize.
        window: the part of the picture that the network sees; masks are 0 beyond the picture's
            edge.
        image_size: the height and width of the window within the input. It starts at the input's
            upper left corner, and masks are 0 in the padding.
        input_size: the height and width of the network's input.
        size: the height and width of the result; `input_size` gives the masks at the input's
            resolution.
    """
    result = np.zeros((len(rows), *size), bool)
    down, across = _Side(window.y1, window.y2, False, image_size[0]), _Side(window.x1, window.x2, window.mirror, image_size[1])
    vertical = _Axis.of(down, length=masks.shape[1], input_length=input_size[0], size=size[0])
    horizontal = _Axis.of(across, length=masks.shape[2], input_length=input_size[1], size=size[1])
    for i, row in enumerate(rows):
        x, y, width, height = cv2.boundingRect(masks[row])
        cells_y, axis_y = vertical.touching(y, y + height)
        cells_x, axis_x = horizontal.touching(x, x + width)
        if cells_y.stop > 0 and cells_x.stop > 0:
            bits = _resize_to_input(masks[row, y : y + height, x : x + width], axis_y, axis_x)
            result[i, cells_y, cells_x] = _exceeds_half(bits, axis_y.cells, axis_x.cells)
    return result


def _resize_to_input(mask: UInt8[np.ndarray, "H W"], vertical: _Axis, horizontal: _Axis) -> UInt8[np.ndarray, "h w"]:
    """Resizes a mask as `cv2.resize` does with uint8, in fixed-point arithmetic.

    Because this arithmetic truncates, masks become a little smaller than with exact rounding.
    """
    turned = cv2.transpose(mask)  # With the axes swapped, each gather copies whole rows.
    across = turned[horizontal.lower] * horizontal.lower_weight[:, None] + turned[horizontal.upper] * horizontal.upper_weight[:, None]
    across = cv2.transpose(across >> 4).astype(np.uint32)
    lower = (across[vertical.lower] * vertical.lower_weight[:, None]) >> 16
    upper = (across[vertical.upper] * vertical.upper_weight[:, None]) >> 16
    # The sum is in quarters; two quarters or more are rounded to 1.
    return (lower + upper >= 2).view(np.uint8)


def _exceeds_half(mask: UInt8[np.ndarray, "H W"], rows: Interpolation, columns: Interpolation) -> Bool[np.ndarray, "h w"]:
    """Interpolates a mask to cells as `torch.nn.functional.interpolate` does, and thresholds it.

    The mode is bilinear with `align_corners=False`, and cells above 0.5 are set.
    """
    mask = mask.astype(np.float32)
    across = mask[:, columns.lower] * columns.lower_weight + mask[:, columns.upper] * columns.upper_weight
    return across[rows.lower] * rows.lower_weight[:, None] + across[rows.upper] * rows.upper_weight[:, None] > 0.5
