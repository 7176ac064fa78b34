"""Masks that cover their box, such as Mask R-CNN's 28 x 28 cells, back in the picture.

NumPy, on the host.

The originals do it in one of two ways. detectron2 and mmdetection sample the mask where the
picture's pixel centres fall on it, and keep 0.5 and above. maskrcnn-benchmark and torchvision put a
border of empty cells around the mask, let the box grow as much, cut its corners to whole pixels,
stretch the mask over these, and keep what is above 0.5.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from jaxseg.data.views.interpolation import torch_positions
from jaxseg.evaluation.masks import Taps, threshold_resized, whole_masks
from jaxseg.structures import MaskCrop


def paste_masks(
    soft_masks: np.ndarray, boxes: np.ndarray, picture_size: tuple[int, int], frame: Literal["box", "integer_box"]
) -> np.ndarray:
    """Binary masks at the picture's size.

    Only pixels of the box are looked at, and of these only those near an occupied cell.

    Args:
        soft_masks: float32 `[D, h, w]`, 0..1, each over its box.
        boxes: `[D, 4]`, `x1, y1, x2, y2` in pixels of the picture; they may reach outside. For
            "box" in continuous coordinates, for "integer_box" as maskrcnn-benchmark and torchvision
            have them: their corners are pixels.
        picture_size: height and width `(H, W)` of the picture.
        frame: "box": as detectron2 and mmdetection sample, and a box without area is empty;
            "integer_box": as maskrcnn-benchmark and torchvision stretch, and any box has at least
            one pixel.

    Returns:
        bool `[D, H, W]`; False for boxes that are not finite.
    """
    return whole_masks(paste_crops(soft_masks, boxes, picture_size, frame), picture_size, len(soft_masks))


def paste_crops(
    soft_masks: np.ndarray, boxes: np.ndarray, picture_size: tuple[int, int], frame: Literal["box", "integer_box"]
) -> Iterator[MaskCrop]:
    """As `paste_masks`, one by one, and of each the part of the picture that it can be in."""
    taps, exceeds = (_sampled, np.greater_equal) if frame == "box" else (_stretched, np.greater)
    for soft, box in zip(np.asarray(soft_masks, np.float32), np.asarray(boxes, np.float32), strict=True):
        if not np.isfinite(box).all():
            yield MaskCrop(0, 0, np.zeros((0, 0), bool))
            continue
        top, rows = taps(box[1], box[3], soft.shape[0], picture_size[0])
        left, columns = taps(box[0], box[2], soft.shape[1], picture_size[1])
        crop = threshold_resized(soft, rows, columns, exceeds)
        yield MaskCrop(top + crop.top, left + crop.left, crop.bits)


def _sampled(low: np.float32, high: np.float32, cells: int, length: int) -> tuple[int, Taps]:
    """The first pixel along an axis that the box touches, and how it and the next ones mix cells.

    In float32 in the order of `torch.nn.functional.grid_sample`. Outside of the box no pixel can
    reach 0.5.
    """
    start, stop = (int(edge) for edge in np.clip([np.floor(low), np.ceil(high)], 0, length))
    if not high > low:
        stop = start
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    normalized = (centres - low) / (high - low) * np.float32(2) - np.float32(1)
    return start, _taps((normalized + np.float32(1)) * np.float32(cells / 2) - np.float32(0.5), cells, border=0)


def _stretched(low: np.float32, high: np.float32, cells: int, length: int) -> tuple[int, Taps]:
    """As `_sampled`, for the box with a border of one cell, cut to whole pixels.

    The resize is that of `torch.nn.functional.interpolate`.
    """
    centre = (high + low) * np.float32(0.5)
    half = (high - low) * np.float32(0.5) * np.float32((cells + 2) / cells)
    first, last = int(centre - half), int(centre + half)
    size = max(last - first + 1, 1)
    start, stop = (min(max(edge, 0), length) for edge in (first, first + size))
    pixels = np.arange(start - first, stop - first, dtype=np.float32)
    return start, _taps(torch_positions(cells + 2, size, pixels), cells, border=1)


def _taps(positions: np.ndarray, cells: int, border: int) -> Taps:
    """Bilinear weights at ascending positions in cells.

    The first `border` cells are empty, and all is empty beyond the others.
    """
    distances = np.abs(positions[:, None] - np.arange(border, border + cells, dtype=np.float32))
    return Taps(np.maximum(np.float32(1) - distances, np.float32(0)), np.floor(positions).astype(np.int64) - border)
