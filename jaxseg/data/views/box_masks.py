"""Ground-truth masks for R-CNN's losses: a fixed grid of cells over the box of each object.

The cost of an object depends neither on its size nor on the size of the picture, because each cell
of a large object is sampled at 4 by 4 points. A cell of a small object, which is smaller than a
pixel, takes the value of bilinear interpolation at its centre.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16

# The weights along an axis add up to this number; a product of two weights fits into 16 bits.
WEIGHT_ONE = 128
# The number of sampling points along each axis of a cell that is larger than a pixel.
POINTS = 4


def crop_masks(
    masks: UInt8[np.ndarray, "n H W"],
    rows: Int[np.ndarray, "m"],
    frames: Float[np.ndarray, "m 4"],
    size: tuple[int, int],
    *,
    mirror: bool = False,
) -> Bool[np.ndarray, "m {size[0]} {size[1]}"]:
    """Samples masks over their frames; a cell is set if at least half of it belongs to the object.

    Args:
        masks: masks of 0 and 1, at the picture's size.
        rows: the indices of the masks to sample.
        frames: `x1, y1, x2, y2` for each of `rows`, in continuous coordinates of the picture's
            pixels, with a positive area. Where a frame extends beyond the picture's edge, the
            pixels at the edge are repeated.
        size: the height and width of the result.
        mirror: whether to swap left and right, so that the result's first column is the frame's
            right side.
    """
    result = np.zeros((len(rows), *size), bool)
    for bits, row, (x1, y1, x2, y2) in zip(result, rows, frames.tolist(), strict=True):
        mask = masks[row]
        vertical, vertical_weights = _taps(y1, y2, size[0], mask.shape[0])
        horizontal, horizontal_weights = _taps(x1, x2, size[1], mask.shape[1])
        if mirror:
            horizontal, horizontal_weights = horizontal[:, ::-1], horizontal_weights[:, ::-1]
        left = int(horizontal.min())
        # Only rows are gathered, never columns, so that every copy is of a contiguous line.
        down = _weighted(mask[:, left : int(horizontal.max()) + 1], vertical, vertical_weights)
        across = _weighted(cv2.transpose(down), horizontal - left, horizontal_weights)
        bits[:] = cv2.transpose(across) >= WEIGHT_ONE**2 // 2
    return result


def _taps(start: float, stop: float, size: int, length: int) -> tuple[Int[np.ndarray, "taps cells"], UInt16[np.ndarray, "taps cells"]]:
    """Returns the pixels that `size` cells between `start` and `stop` read, and their weights.

    There are `length` pixels, of which the first and the last are repeated beyond the edges.
    """
    cell = (stop - start) / size
    centres = start + (np.arange(size) + 0.5) * cell
    if cell > 1:
        offsets = ((np.arange(POINTS) + 0.5) / POINTS - 0.5) * cell
        pixels = np.floor(centres + offsets[:, None])
        weights = np.full(pixels.shape, WEIGHT_ONE // POINTS, np.uint16)
    else:
        lower = np.floor(centres - 0.5)
        upper_weight = np.rint((centres - 0.5 - lower) * WEIGHT_ONE).astype(np.uint16)
        pixels, weights = np.stack([lower, lower + 1]), np.stack([WEIGHT_ONE - upper_weight, upper_weight])
    return np.clip(pixels.astype(np.int64), 0, length - 1), weights


def _weighted(
    lines: Int[np.ndarray, "lines width"], taps: Int[np.ndarray, "taps cells"], weights: UInt16[np.ndarray, "taps cells"]
) -> UInt16[np.ndarray, "cells width"]:
    """Returns the weighted sum of the lines of each cell."""
    total = lines[taps[0]] * weights[0][:, None]
    for line, weight in zip(taps[1:], weights[1:], strict=True):
        total += lines[line] * weight[:, None]
    return total
