"""Compact storage of polygons, in blocks that hold the coordinates without loss in few bytes."""

import itertools
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32
from numpy import ndarray

# COCO writes two decimals, so hundredths in 16 bits hold its polygons without loss, in a quarter of
# the memory of doubles.
_HUNDREDTHS = 100.0
_PACKED = (np.uint16, np.int32)

# The number of coordinates in a block, which bounds the memory of computations on it.
_BLOCK = 2**18


class _Block(NamedTuple):
    """The coordinates x, y, x, y, ... of whole polygons, and the position of each polygon's end."""

    values: ndarray
    ends: Int32[ndarray, "n"]

    @property
    def lengths(self) -> Int32[ndarray, "n"]:
        return np.diff(self.ends, prepend=np.int32(0))


class Measures(NamedTuple):
    """The quantities by which the polygons of a block are checked.

    Attributes:
        areas: the areas in square pixels.
        lows: the least x and y.
        highs: the largest x and y.
        outlines: the lengths of the outlines in pixels.
    """

    areas: Float64[ndarray, "n"]
    lows: Float64[ndarray, "n 2"]
    highs: Float64[ndarray, "n 2"]
    outlines: Float64[ndarray, "n"]


class Polygons:
    """A store of polygons.

    Polygons are first added; after `close`, they are checked block by block and looked up by their
    number.
    """

    def __init__(self) -> None:
        self._values, self._ends = array("d"), array("i")
        self._blocks: list[_Block] = []
        self._first: list[int] = []

    def add(self, polygon: array) -> None:
        """Adds a polygon, whose coordinates are doubles."""
        if len(self._values) + len(polygon) > _BLOCK:
            self._close_block()
        self._values.extend(polygon)
        self._ends.append(len(self._values))

    def close(self) -> None:
        """Closes the last block; no more polygons can be added."""
        self._close_block()
        self._count()

    def _close_block(self) -> None:
        if self._ends:
            values, ends = np.frombuffer(self._values, np.float64), np.frombuffer(self._ends, np.int32)
            self._blocks.append(_Block(_packed(values), ends))
            self._values, self._ends = array("d"), array("i")

    def measures(self, block: int) -> Measures:
        """Returns the measures of all polygons of a block."""
        return _measured(self._blocks[block])

    def spans(self) -> list[range]:
        """Returns the numbers of the polygons in each block."""
        return [range(first, first + len(block.ends)) for first, block in zip(self._first, self._blocks, strict=False)]

    def keep(self, kept: Sequence[Bool[ndarray, "n"]]) -> None:
        """Drops polygons and renumbers the others; `kept` has an array for each block."""
        for i, rows in enumerate(kept):
            if not rows.all():
                values, lengths = self._blocks[i].values, self._blocks[i].lengths
                self._blocks[i] = _Block(values[np.repeat(rows, lengths)], np.cumsum(lengths[rows], dtype=np.int32))
        self._count()

    def __getitem__(self, number: int) -> list[float]:
        """Returns the coordinates of one polygon."""
        position = bisect_right(self._first, number) - 1
        values, ends = self._blocks[position]
        row = number - self._first[position]
        return _unpacked(values[ends[row - 1] if row else 0 : ends[row]]).tolist()

    def _count(self) -> None:
        self._first = list(itertools.accumulate((len(block.ends) for block in self._blocks[:-1]), initial=0))


def _packed(values: Float64[ndarray, "n"]) -> ndarray:
    """Converts coordinates to hundredths in 16 or 32 bits if that loses nothing."""
    with np.errstate(invalid="ignore", over="ignore"):
        hundredths = np.rint(values * _HUNDREDTHS)
        for kind in _PACKED:
            limits = np.iinfo(kind)
            if limits.min <= hundredths.min() and hundredths.max() <= limits.max and np.array_equal(hundredths / _HUNDREDTHS, values):
                return hundredths.astype(kind)
    return values


def _unpacked(values: ndarray) -> Float64[ndarray, "n"]:
    return values if values.dtype == np.float64 else values / _HUNDREDTHS


def _measured(block: _Block) -> Measures:
    values = _unpacked(block.values)
    last = block.ends // 2 - 1
    first = last + 1 - block.lengths // 2
    x, y = values[0::2].copy(), values[1::2].copy()
    next_x, next_y = (_following(side, first, last) for side in (x, y))
    with np.errstate(invalid="ignore", over="ignore"):
        areas = np.abs(np.add.reduceat(x * next_y - y * next_x, first) / 2)
        outlines = np.add.reduceat(np.maximum(np.abs(next_x - x), np.abs(next_y - y)), first)
    lows, highs = (np.stack([limit.reduceat(x, first), limit.reduceat(y, first)], axis=1) for limit in (np.minimum, np.maximum))
    return Measures(areas, lows, highs, outlines)


def _following(side: Float64[ndarray, "n"], first: ndarray, last: ndarray) -> Float64[ndarray, "n"]:
    """Returns the coordinate of the next corner, which for the last corner is the first one."""
    following = np.roll(side, -1)
    following[last] = side[first]
    return following
