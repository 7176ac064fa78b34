"""The conversion of a detector's masks and boxes to the picture, to run lengths and to polygons.

It runs on the host with NumPy.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from jaxseg.data.views.interpolation import Interpolation
from jaxseg.structures import MaskCrop

MASK_THRESHOLD = 0.5
# The number of output rows in a block; each block needs only a few rows of the soft mask.
_ROWS = 64


class Taps(NamedTuple):
    """The weights with which new positions along an axis interpolate cells.

    Attributes:
        weights: float32 `[new_size, size]`; each row has the weights of two neighbouring cells, or
            is 0.
        first: `[new_size]`, ascending, the index of the first of the two cells. It is -1 or
            size - 1 if the first or the second cell, respectively, is beyond the edge.
    """

    weights: np.ndarray
    first: np.ndarray


def masks_in_picture(soft_masks: np.ndarray, picture_size: tuple[int, int], covered: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Resizes soft masks bilinearly, and sets the pixels above 0.5.

    The result is that of `torch.nn.functional.interpolate(align_corners=False) > 0.5`, as in the
    original: the interpolation has half-pixel centres and does not antialias. Only the pixels
    around each mask are computed, because no pixel exceeds 0.5 unless it is within one cell of a
    cell that does.

    Args:
        soft_masks: float32 `[D, h, w]`, 0..1.
        picture_size: the height and width `(H, W)` of the picture.
        covered: the fractions of the mask's height and width that the picture covers, from the
            upper left corner.

    Returns:
        bool `[D, H, W]`.
    """
    return whole_masks(crops_in_picture(soft_masks, picture_size, covered), picture_size, len(soft_masks))


def crops_in_picture(
    soft_masks: np.ndarray, picture_size: tuple[int, int], covered: tuple[float, float] = (1.0, 1.0)
) -> Iterator[MaskCrop]:
    """Yields the masks of `masks_in_picture` one by one, each on the part that can contain it."""
    soft_masks = np.asarray(soft_masks, np.float32)
    rows, columns = (_taps(soft_masks.shape[1 + axis], picture_size[axis], covered[axis]) for axis in (0, 1))
    for soft in soft_masks:
        yield threshold_resized(soft, rows, columns, np.greater)


def whole_masks(crops: Iterable[MaskCrop], picture_size: tuple[int, int], count: int) -> np.ndarray:
    """Converts the crops of `count` masks to bool `[count, H, W]`."""
    masks = np.zeros((count, *picture_size), bool)
    for mask, (top, left, bits) in zip(masks, crops, strict=True):
        mask[top : top + bits.shape[0], left : left + bits.shape[1]] = bits
    return masks


def threshold_resized(soft: np.ndarray, rows: Taps, columns: Taps, exceeds: Callable[..., np.ndarray]) -> MaskCrop:
    """Resizes a soft mask and compares it with 0.5 by `exceeds`.

    `exceeds` is `np.greater` or `np.greater_equal`.
    """
    occupied = exceeds(soft, MASK_THRESHOLD)
    if not occupied.any():
        return MaskCrop(0, 0, np.zeros((0, 0), bool))
    (top, bottom), (y1, y2) = _support(occupied, 0, rows.first)
    (left, right), (x1, x2) = _support(occupied, 1, columns.first)
    stretched = soft[top:bottom, left:right] @ columns.weights[x1:x2, left:right].T
    bits = np.empty((y2 - y1, x2 - x1), bool)
    for start in range(y1, y2, _ROWS):
        stop = min(start + _ROWS, y2)
        used = slice(max(rows.first[start], top), min(rows.first[stop - 1] + 2, bottom))
        block = rows.weights[start:stop, used] @ stretched[used.start - top : used.stop - top]
        exceeds(block, MASK_THRESHOLD, out=bits[start - y1 : stop - y1])
    return MaskCrop(y1, x1, bits)


@functools.lru_cache(maxsize=64)
def _taps(size: int, new_size: int, covered: float) -> Taps:
    """Makes the bilinear resize of the first `covered` fraction of `size` cells."""
    positions = Interpolation.between(size, new_size, covered)
    weights = np.zeros((new_size, size), np.float32)
    everywhere = np.arange(new_size)
    weights[everywhere, positions.lower] = positions.lower_weight
    weights[everywhere, positions.upper] += positions.upper_weight
    return Taps(weights, positions.lower)


def _support(occupied: np.ndarray, axis: int, first: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the range of cells that matter along an axis, and the new positions they affect.

    The cells are the occupied ones, and one more on each side.
    """
    cells = np.flatnonzero(occupied.any(1 - axis))
    low, high = int(cells[0]), int(cells[-1])
    start, stop = np.searchsorted(first, [low - 1, high + 1])
    return (max(low - 1, 0), min(high + 2, occupied.shape[axis])), (int(start), int(stop))


def within_picture(corners: np.ndarray, picture_size: tuple[int, int], pixel_offset: float = 0.0) -> np.ndarray:
    """Clips boxes to the picture, in continuous coordinates.

    The original of YOLACT returns integers. COCO's ground truth is continuous, and truncating boxes
    by up to a pixel costs small objects most of their overlap.

    Args:
        corners: `[D, 4]`, `x1, y1, x2, y2` in pixels of the picture, see `View.boxes_in_picture`.
        picture_size: the height and width of the picture.
        pixel_offset: 1 if boxes end in their last pixel. maskrcnn-benchmark scales such boxes
            without a correction, and then computes the width as x2 - x1 + 1, in pixels of the
            picture.

    Returns:
        float32 `[D, 4]`, with `0 <= x1 <= x2 <= W` and `0 <= y1 <= y2 <= H`.
    """
    ends = np.asarray(corners, np.float32).reshape(-1, 2, 2) + np.array([[[0.0], [pixel_offset]]], np.float32)
    return np.clip(np.sort(ends, axis=1), 0, np.array(picture_size[::-1], np.float32)).reshape(-1, 4)


def encode_rle(masks: np.ndarray) -> list[dict[str, Any]]:
    """Encodes bool masks `[D, H, W]` as COCO's compressed run lengths.

    The results can be written as JSON: `{"size": [H, W], "counts": text}`.
    """
    return encode_crops((MaskCrop(0, 0, mask) for mask in masks), masks.shape[1:])


def encode_crops(crops: Iterable[MaskCrop], picture_size: tuple[int, int]) -> list[dict[str, Any]]:
    """Encodes masks of a picture of this height and width as `encode_rle` does.

    No array of the picture's size is made.
    """
    encoded = []
    for crop in crops:
        rle = coco_mask.frPyObjects({"size": list(picture_size), "counts": _runs(crop, picture_size)}, *picture_size)
        encoded.append({"size": list(picture_size), "counts": rle["counts"].decode("ascii")})
    return encoded


def _runs(crop: MaskCrop, picture_size: tuple[int, int]) -> list[int]:
    """Returns the lengths of the alternating runs of 0 and 1 down the columns of the picture."""
    height, width = picture_size
    # OpenCV transposes faster than NumPy.
    columns = np.ascontiguousarray(cv2.transpose(crop.bits.view(np.uint8))) if crop.bits.size else np.zeros((0, 0), np.uint8)
    changes = np.diff(np.pad(columns, ((0, 0), (1, 1))).view(np.int8), axis=1)
    starts, stops = ((crop.left + column) * height + crop.top + row for column, row in (np.nonzero(changes == sign) for sign in (1, -1)))
    # A run at the bottom of a column can continue at the top of the next column.
    ends = np.flatnonzero(starts[1:] != stops[:-1])
    edges = np.stack([starts[np.append(0, ends + 1)], stops[np.append(ends, -1)]], axis=1).ravel() if len(starts) else starts
    runs = np.diff(edges, prepend=0, append=height * width)
    return runs.tolist() if runs[-1] else runs[:-1].tolist()


def decode_rle(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Inverts `encode_rle`, for one or more masks of the same size."""
    return np.ascontiguousarray(coco_mask.decode(list(rles)).transpose(2, 0, 1)).astype(bool)


def polygons(mask: np.ndarray, origin: tuple[int, int] = (0, 0)) -> list[list[float]]:
    """Converts a bool mask `[H, W]` to polygons in COCO's format.

    Each connected part has one polygon, `[x1, y1, x2, y2, ...]`. The mask's upper left corner is at
    `origin` (x, y).

    The polygons follow the edges of pixels, in continuous coordinates, so that even a single pixel
    has an area. COCO's format is a union of filled polygons: holes are lost, and so are parts
    inside a hole, although the run lengths keep both. An empty mask has no polygon.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    # On a grid of half pixels, pixel k covers 2k .. 2k + 2, so its edges are on grid points.
    lattice = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    lattice[1::2, 1::2] = mask[y : y + height, x : x + width]
    contours, _ = cv2.findContours(cv2.dilate(lattice, np.ones((3, 3), np.uint8)), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [(contour.reshape(-1, 2) / 2 + (x + origin[0], y + origin[1])).ravel().tolist() for contour in contours]
