"""Bitmaps of objects at the picture's or the input's resolution, whichever has fewer pixels.

mmdetection and torchvision resize whole masks to the network's input by nearest neighbours, and cut
the targets of each region from them. Such a resize repeats or leaves out whole rows and columns of
the picture. So the pixels of the picture are enough where it is enlarged, together with the place
of each in the input, and those of the input where it is reduced.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from jaxseg.data.views.view import View
from jaxseg.ops.bitmaps import EDGE_GUARD
from jaxseg.structures import BitmapPool


class _Axis(NamedTuple):
    """The lines of pixels along one axis that a bitmap has.

    Attributes:
        lines: the line of the picture for each; None if these are all lines of the picture.
        start, step: the position in the input where the first line begins, and the width of each.
    """

    lines: Int[np.ndarray, "n"] | None
    start: float
    step: float


def pack_bitmaps(
    masks: UInt8[np.ndarray, "n H W"], objects: Int[np.ndarray, "m"], view: View, *, mirrored_first: bool, room: int, rows: int
) -> BitmapPool:
    """Packs the bitmaps of some objects into one array.

    While they do not fit, the largest is reduced to half the number of rows and columns, where
    pixels of which at least half belongs to the object are set.

    Args:
        masks: masks of 0 and 1, at the picture's size.
        objects: the indices of the masks to pack; rows of -1 get no pixels.
        view: the view of the picture that the network sees; the whole picture must be in it.
        mirrored_first: whether masks are mirrored before they are resized, and not afterwards.
        room: the number of bytes.
        rows: the number of rows of objects of the result.
    """
    down = _axis(view.picture_size[0], view.image_size[0], mirror=False, mirrored_first=False)
    across = _axis(view.picture_size[1], view.image_size[1], mirror=view.mirror, mirrored_first=mirrored_first)
    pool = BitmapPool(np.zeros(room, np.uint8), np.zeros(rows, np.int32), np.zeros((rows, 2), np.int32), np.zeros((rows, 4), np.float32))
    bitmaps = []
    for row, index in enumerate(objects):
        if index < 0:
            bitmaps.append(np.zeros((0, 0), np.uint8))
            continue
        mask = masks[index] if down.lines is None else masks[index][down.lines]
        mask = mask if across.lines is None else mask[:, across.lines]
        x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask))
        bitmaps.append(mask[y : y + height, x : x + width])
        starts = across.start + x * across.step, down.start + y * down.step
        pool.frames[row] = *starts, starts[0] + width * across.step, starts[1] + height * down.step
    place = 0
    for row, bitmap in enumerate(_fitted(bitmaps, room)):
        packed = np.packbits(bitmap, axis=-1)
        pool.bits[place : place + packed.size] = packed.ravel()
        pool.starts[row], pool.sizes[row] = place, bitmap.shape
        place += packed.size
    return pool


def _axis(length: int, size: int, *, mirror: bool, mirrored_first: bool) -> _Axis:
    """Makes an axis of a picture with `length` lines, which has `size` lines in the input."""
    if size >= length:
        if not mirror:
            return _Axis(None, 0.0, size / length)
        # Lines begin at the next whole pixel from their exact place on. If mirrored lines were
        # rounded before, this pixel is on the other side, which is one less unless it is exact.
        return _Axis(None, size - (0 if mirrored_first else 1 - 2 * EDGE_GUARD), -size / length)
    lines = np.arange(size) * length // size
    if mirror:
        lines = length - 1 - lines if mirrored_first else lines[::-1]
    return _Axis(lines, 0.0, 1.0)


def _fitted(bitmaps: list[UInt8[np.ndarray, "_ _"]], room: int) -> list[UInt8[np.ndarray, "_ _"]]:
    """Reduces the largest bitmaps until all fit; bitmaps without pixels stay as they are."""
    fitted = list(bitmaps)
    costs = [_bytes(bitmap.shape) for bitmap in fitted]
    while sum(costs) > room:
        largest = int(np.argmax(costs))
        height, width = (max(side // 2, 1) for side in fitted[largest].shape)
        shares = cv2.resize(bitmaps[largest].astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        fitted[largest] = (shares >= 0.5).astype(np.uint8)
        if _bytes((height, width)) == costs[largest]:
            # Not even one byte for each object: the last ones have none.
            return fitted[:room]
        costs[largest] = _bytes((height, width))
    return fitted


def _bytes(size: tuple[int, ...]) -> int:
    return size[0] * math.ceil(size[1] / 8)
