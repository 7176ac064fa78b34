"""The pasting of masks over boxes, such as Mask R-CNN's 28 x 28 cells, into the picture.

It runs on the host with NumPy.

The originals do it in one of two ways. detectron2 and mmdetection sample the mask at the centres of
the picture's pixels, and set the pixels of 0.5 and above. maskrcnn-benchmark and torchvision add a
border of empty cells to the mask, enlarge the box accordingly, truncate its corners to whole
pixels, stretch the mask over these pixels, and set those above 0.5.
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
    """Pastes soft masks over boxes into binary masks of the picture's size.

    Only pixels within the box and near an occupied cell are computed.

    Args:
        soft_masks: float32 `[D, h, w]`, 0..1, each over its box.
        boxes: `[D, 4]`, `x1, y1, x2, y2` in pixels of the picture; they can extend beyond the
            picture. For "box" they are in continuous coordinates; for "integer_box" their corners
            are pixels, as in maskrcnn-benchmark and torchvision.
        picture_size: the height and width `(H, W)` of the picture.
        frame: "box" samples masks as detectron2 and mmdetection do, where a box without area gives
            an empty mask. "integer_box" stretches masks as maskrcnn-benchmark and torchvision do,
            where every box has at least one pixel.

    Returns:
        bool `[D, H, W]`; False for boxes that are not finite.
    """
    return whole_masks(paste_crops(soft_masks, boxes, picture_size, frame), picture_size, len(soft_masks))


def paste_crops(
    soft_masks: np.ndarray, boxes: np.ndarray, picture_size: tuple[int, int], frame: Literal["box", "integer_box"]
) -> Iterator[MaskCrop]:
    """Yields the masks of `paste_masks` one by one, each on the part that can contain it."""
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
    """Returns the first pixel along an axis that the box touches, and the weights of the cells.

    The arithmetic is that of `torch.nn.functional.grid_sample` in float32, in the same order. No
    pixel outside of the box can reach 0.5.
    """
    start, stop = (int(edge) for edge in np.clip([np.floor(low), np.ceil(high)], 0, length))
    if not high > low:
        stop = start
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    normalized = (centres - low) / (high - low) * np.float32(2) - np.float32(1)
    return start, _taps((normalized + np.float32(1)) * np.float32(cells / 2) - np.float32(0.5), cells, border=0)


def _stretched(low: np.float32, high: np.float32, cells: int, length: int) -> tuple[int, Taps]:
    """Does the same as `_sampled` for the box with a border of one cell, in whole pixels.

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
    """Returns the bilinear weights at ascending positions, which are in cells.

    The first `border` cells are empty, and so is everything beyond the last cell.
    """
    distances = np.abs(positions[:, None] - np.arange(border, border + cells, dtype=np.float32))
    return Taps(np.maximum(np.float32(1) - distances, np.float32(0)), np.floor(positions).astype(np.int64) - border)
