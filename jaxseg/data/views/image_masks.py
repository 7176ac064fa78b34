"""Binary masks at network size and at the losses' resolutions, bit for bit as the original makes them.

The original resizes each mask to the network's input with `cv2.resize` on uint8, so that it is binary again, and each loss
resizes that with torch's bilinear interpolation to its own resolution and takes what exceeds one half. A cell of the second
grid looks at two by two pixels of the first, and each of those at two by two of the picture. So only these are
computed, only where the object is, and the large mask is never made.
"""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from jaxseg.data.views.window import Window, resize_taps

# cv2 resizes uint8 with weights in units of 1 / 2048.
FIXED_POINT_ONE = 2048


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """One axis of torch's `interpolate(mode="bilinear", align_corners=False)`: two positions and their weights for each cell."""

    lower: Int[np.ndarray, "cells"]
    upper: Int[np.ndarray, "cells"]
    lower_weight: Float32[np.ndarray, "cells"]
    upper_weight: Float32[np.ndarray, "cells"]

    @classmethod
    def between(cls, length: int, size: int) -> "Interpolation":
        """From `length` pixels to `size` cells, in torch's float32 arithmetic."""
        scale = np.float32(length) / np.float32(size)
        position = np.maximum(scale * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
        lower = np.minimum(position.astype(np.int64), length - 1)
        weight = np.clip(position - lower.astype(np.float32), np.float32(0), np.float32(1))
        return cls(lower, np.minimum(lower + 1, length - 1), np.float32(1) - weight, weight)


def resize_binary_masks(masks: UInt8[np.ndarray, "n H W"], size: tuple[int, int]) -> Bool[np.ndarray, "n {size[0]} {size[1]}"]:
    """torch's `F.interpolate(masks.float(), size, mode="bilinear", align_corners=False) > 0.5`, in NumPy.

    Args:
        masks: of 0 and 1.
        size: height and width of the result.
    """
    rows, columns = Interpolation.between(masks.shape[1], size[0]), Interpolation.between(masks.shape[2], size[1])
    result = np.empty((len(masks), *size), bool)
    for i, mask in enumerate(masks):
        result[i] = _exceeds_half(mask, rows, columns)
    return result


def _exceeds_half(mask: UInt8[np.ndarray, "H W"], rows: Interpolation, columns: Interpolation) -> Bool[np.ndarray, "h w"]:
    mask = mask.astype(np.float32)
    across = mask[:, columns.lower] * columns.lower_weight + mask[:, columns.upper] * columns.upper_weight
    return across[rows.lower] * rows.lower_weight[:, None] + across[rows.upper] * rows.upper_weight[:, None] > 0.5


@functools.lru_cache(maxsize=16)
def _needed_positions(length: int, size: int) -> tuple[Interpolation, Int[np.ndarray, "positions"]]:
    """The positions that an interpolation looks at, and the interpolation on these alone. The same for all images of a run."""
    cells = Interpolation.between(length, size)
    positions, where = np.unique(np.concatenate([cells.lower, cells.upper]), return_inverse=True)
    return dataclasses.replace(cells, lower=where[:size], upper=where[size:]), positions


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One axis of the way from the picture over the network's input to the cells of a loss.

    `lower` and `upper` are the picture's pixels under each position of the input, with their weights in 1 / 2048 (0 beyond the
    picture's edge); `first` and `last` the range of the picture's pixels that a cell depends on.
    """

    lower: Int[np.ndarray, "positions"]
    upper: Int[np.ndarray, "positions"]
    lower_weight: Int[np.ndarray, "positions"]
    upper_weight: Int[np.ndarray, "positions"]
    cells: Interpolation
    first: Int[np.ndarray, "cells"]
    last: Int[np.ndarray, "cells"]

    @classmethod
    def between(cls, start: int, stop: int, mirror: bool, length: int, network_size: int, size: int) -> "_Axis":
        """Of the window's side `start` to `stop`, on a picture `length` pixels long."""
        lower, upper, weight = resize_taps(stop - start, network_size)
        if mirror:
            lower, upper = stop - 1 - lower, stop - 1 - upper
        else:
            lower, upper = start + lower, start + upper
        cells, needed = _needed_positions(network_size, size)
        lower, upper, weight = lower[needed], upper[needed], weight[needed]
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
        """The cells that depend on the pixels `start` to `stop`, and the axis of these cells and pixels alone."""
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
    network_size: tuple[int, int],
    size: tuple[int, int],
) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
    """What the window shows of some masks, resized to `network_size` and from there to `size`, both times binary.

    Args:
        masks: of 0 and 1, at the picture's size.
        rows: which of them.
        window: what the network sees; masks are 0 beyond the picture's edge.
        network_size: height and width of the network's input.
        size: height and width of the result; `network_size` itself gives the masks at network size.
    """
    result = np.zeros((len(rows), *size), bool)
    vertical = _Axis.between(window.y1, window.y2, False, masks.shape[1], network_size[0], size[0])
    horizontal = _Axis.between(window.x1, window.x2, window.mirror, masks.shape[2], network_size[1], size[1])
    for i, row in enumerate(rows):
        x, y, width, height = cv2.boundingRect(masks[row])
        cells_y, axis_y = vertical.touching(y, y + height)
        cells_x, axis_x = horizontal.touching(x, x + width)
        if cells_y.stop > 0 and cells_x.stop > 0:
            bits = _resize_to_network(masks[row, y : y + height, x : x + width], axis_y, axis_x)
            result[i, cells_y, cells_x] = _exceeds_half(bits, axis_y.cells, axis_x.cells)
    return result


def _resize_to_network(mask: UInt8[np.ndarray, "H W"], vertical: _Axis, horizontal: _Axis) -> UInt8[np.ndarray, "h w"]:
    """`cv2.resize`'s fixed-point arithmetic on uint8, whose cut-off bits make masks a little smaller than exact rounding would."""
    turned = cv2.transpose(mask)  # so that each gather copies whole rows
    across = turned[horizontal.lower] * horizontal.lower_weight[:, None] + turned[horizontal.upper] * horizontal.upper_weight[:, None]
    across = cv2.transpose(across >> 4).astype(np.uint32)
    lower = (across[vertical.lower] * vertical.lower_weight[:, None]) >> 16
    upper = (across[vertical.upper] * vertical.upper_weight[:, None]) >> 16
    # In quarters: two and more round to 1.
    return (lower + upper >= 2).view(np.uint8)
