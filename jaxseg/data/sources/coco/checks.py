"""Checks the annotations of an instance file, many rows at once, for reasons to leave them out."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64
from numpy import ndarray

from jaxseg.data.sources.coco.instance_file import InstanceFile, Reason, Rows
from jaxseg.data.sources.coco.polygons import Measures

# In square pixels. The computed area of points on one line is a rounding error, and not exactly 0.
_SMALLEST_AREA = 1e-6

# In pixels along the outline of an object; pycocotools takes 80 bytes for each.
_LONGEST_OUTLINE = 2**22

# pycocotools writes a byte beyond its memory if all runs take 6 characters, that is, if each run or
# change of runs is 2**24 pixels or more. An object with a smaller extent, or in a smaller picture,
# has no such runs.
_LARGEST_EXTENT = 2**25
_LARGE_PICTURE = 2**26

# The largest coordinate of a box or polygon in the unit square, with a margin for rounding.
_UNIT = 1 + 1e-6

# In a picture with a side of at most this, a box within the first pixel is not suspicious.
_SMALL_PICTURE = 2

# The number of rows that are checked at once, which bounds the memory.
_SPAN = 2**18


def positions(wanted: Int64[ndarray, "m"], ids: Int64[ndarray, "n"]) -> Int32[ndarray, "m"]:
    """Returns the index of each wanted id among distinct ids, or -1 if it is not among them."""
    order = np.argsort(ids)
    ordered = ids[order]
    places = np.empty(len(wanted), np.int32)
    for span in _spans(len(wanted)):
        nearest = np.searchsorted(ordered, wanted[span]).clip(max=len(ids) - 1)
        places[span] = np.where(ordered[nearest] == wanted[span], order[nearest], -1)
    return places


def _spans(count: int) -> Iterator[slice]:
    for start in range(0, count, _SPAN):
        yield slice(start, min(start + _SPAN, count))


def find_problems(
    file: InstanceFile, image: Int32[ndarray, "n"], category: Int32[ndarray, "n"], label: Int32[ndarray, "n"]
) -> Int8[ndarray, "n"]:
    """Finds the reason to leave out each annotation, which is 0 if there is none.

    Args:
        file: the content of the file. Polygons that cannot be used are removed from it.
        image: the index of each annotation's image, or -1 if the file does not list it.
        category: the index of its category, or -1 if the file does not list it.
        label: its class, or -1 if the configuration leaves it out.
    """
    rows, sizes = file.rows, file.picture_sizes
    reason = np.frombuffer(rows.reason, np.int8).copy()
    reason[label < 0] = Reason.OTHER_CATEGORY
    reason[category < 0] = Reason.NO_CATEGORY
    reason[image < 0] = Reason.NO_IMAGE
    _check_rles(rows, reason, sizes, image)
    _check_boxes(np.frombuffer(rows.box, np.float64).reshape(-1, 4), reason, sizes, image)
    if file.masks:
        _check_polygons(rows, reason, sizes, image)
    return reason


def _check_rles(rows: Rows, reason: Int8[ndarray, "n"], sizes: ndarray, image: Int32[ndarray, "n"]) -> None:
    """Marks rows whose run lengths have another size than their image."""
    row = np.frombuffer(rows.rle_row, np.int32)
    stated = np.stack([np.frombuffer(side, np.int32) for side in (rows.rle_height, rows.rle_width)], axis=1)
    other = (stated != sizes[image[row]]).any(axis=1)
    reason[row[other & (reason[row] == 0)]] = Reason.BAD_RLE


def _check_boxes(boxes: Float64[ndarray, "n 4"], reason: Int8[ndarray, "n"], sizes: ndarray, image: Int32[ndarray, "n"]) -> None:
    """Marks boxes (x, y, width, height) that are not valid in their image.

    If most boxes of the file lie in the unit square, these are marked as fractions of the image.
    """
    unit = np.zeros(len(reason), bool)
    large = 0
    for span in _spans(len(reason)):
        x, y, width, height = boxes[span].T
        size = sizes[image[span]]
        with np.errstate(invalid="ignore", over="ignore"):
            right, bottom = x + width, y + height
        good = np.isfinite(boxes[span]).all(axis=1) & (width > 0) & (height > 0)
        good &= (x < size[:, 1]) & (y < size[:, 0]) & (right > 0) & (bottom > 0)
        reason[span][(reason[span] == 0) & ~good] = Reason.BAD_BOX
        counted = (reason[span] == 0) & (size > _SMALL_PICTURE).all(axis=1)
        unit[span] = counted & (x >= 0) & (y >= 0) & (right <= _UNIT) & (bottom <= _UNIT)
        large += int(counted.sum())
    if 2 * int(unit.sum()) > large:
        reason[unit] = Reason.UNIT_BOX


def _check_polygons(rows: Rows, reason: Int8[ndarray, "n"], sizes: ndarray, image: Int32[ndarray, "n"]) -> None:
    """Drops bad polygons, and marks rows that are left without a mask."""
    ends = np.cumsum(np.frombuffer(rows.polygon_count, np.int32), dtype=np.int64)
    outlines, extents = np.zeros(len(reason), np.float32), np.zeros(len(reason), np.float32)
    good: list[ndarray] = []
    unit: list[ndarray] = []
    large = 0
    for block, span in enumerate(rows.polygons.spans()):
        owner, measures = _owners(ends, span), rows.polygons.measures(block)
        size = sizes[image[owner]]
        good.append(_good_polygons(measures, size) & (reason[owner] == 0))
        counted = good[-1] & (size > _SMALL_PICTURE).all(axis=1)
        unit.append(counted & (measures.lows >= 0).all(axis=1) & (measures.highs <= _UNIT).all(axis=1))
        large += int(counted.sum())
        _add_by_row(outlines, owner[good[-1]], measures.outlines[good[-1]])
        _add_by_row(extents, owner[good[-1]], _extents(measures, size)[good[-1]])
    writable = (outlines <= _LONGEST_OUTLINE) & (extents <= _LARGEST_EXTENT)
    if 2 * sum(int(rows.sum()) for rows in unit) <= large:
        unit = [np.zeros_like(rows) for rows in unit]
    good = [usable & writable[_owners(ends, span)] for usable, span in zip(good, rows.polygons.spans(), strict=True)]
    _drop_polygons(rows, reason, ends, good=good, unit=unit)


def _drop_polygons(
    rows: Rows,
    reason: Int8[ndarray, "n"],
    ends: Int64[ndarray, "n"],
    *,
    good: Sequence[Bool[ndarray, "p"]],
    unit: Sequence[Bool[ndarray, "p"]],
) -> None:
    """Keeps the polygons that are `good` and not `unit`, and marks rows without a mask.

    Args:
        rows: the annotations.
        reason: the reason to leave out each row, which is updated.
        ends: for each row, the number of polygons up to and including its own.
        good: for each block of polygons, which of them can be used.
        unit: for each block, which of them lie in the unit square and are left out for this.
    """
    kept = [g & ~u for g, u in zip(good, unit, strict=True)]
    counts, units = np.frombuffer(rows.polygon_count, np.int32), np.zeros(len(reason), bool)
    counts[:] = 0
    for span, keeps, drops in zip(rows.polygons.spans(), kept, unit, strict=True):
        owner = _owners(ends, span)
        _add_by_row(counts, owner[keeps], np.ones(int(keeps.sum())))
        units[owner[drops]] = True
    rows.polygons.keep(kept)
    without = (reason == 0) & (counts == 0)
    without[np.frombuffer(rows.rle_row, np.int32)] = False
    reason[without] = np.where(units[without], Reason.UNIT_POLYGON, Reason.BAD_POLYGON)


def _owners(ends: Int64[ndarray, "n"], span: range) -> Int64[ndarray, "p"]:
    """Returns the row of each polygon of a block; the polygons of each row end before `ends`."""
    return np.searchsorted(ends, np.arange(span.start, span.stop), side="right")


def _add_by_row(totals: ndarray, rows: Int64[ndarray, "p"], values: ndarray) -> None:
    """Adds values to the totals of their rows, which are in ascending order."""
    if len(rows):
        first, last = int(rows[0]), int(rows[-1])
        totals[first : last + 1] += np.bincount(rows - first, values).astype(totals.dtype)


def _extents(measures: Measures, sizes: ndarray) -> Float64[ndarray, "p"]:
    """Returns the area in pixels of the rectangle around each polygon's visible part.

    It is 0 if the picture is not large.
    """
    sides = np.minimum(measures.highs, sizes[:, ::-1]) - np.maximum(measures.lows, 0)
    return np.where(sizes.prod(axis=1, dtype=np.int64) < _LARGE_PICTURE, 0, sides.prod(axis=1))


def _good_polygons(measures: Measures, sizes: ndarray) -> Bool[ndarray, "p"]:
    """Returns which polygons have an area, touch the image, and do not reach far beyond it.

    They may reach beyond each side by the size of the image. A polygon farther outside is an error,
    and pycocotools would follow every pixel of its outline.
    """
    sides, lows, highs = sizes[:, ::-1], measures.lows, measures.highs
    inside = (lows < sides) & (highs > 0) & (lows >= -sides) & (highs <= 2 * sides)
    return (measures.areas > _SMALLEST_AREA) & inside.all(axis=1)
