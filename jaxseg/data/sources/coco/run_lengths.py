"""Checks and converts the run lengths of masks in COCO's two forms.

pycocotools is not used for this, because invalid run lengths make it access memory out of bounds.
"""

from array import array
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

# The largest number of groups in a compressed number. pycocotools reads longer numbers wrongly, and
# writes them beyond its memory.
_MOST_GROUPS = 6
_LARGEST_NUMBER = 2 ** (5 * _MOST_GROUPS - 1) - 1

# The number of groups that are read at once, and of runs that are written, which bounds the memory.
_SLICE = 2**14


def checked_counts(counts: str | list, pixels: int) -> bytes | None:
    """Returns the compressed form of run lengths, or None if they are not valid.

    Args:
        counts: run lengths in COCO's compressed form, or as a list.
        pixels: the number of pixels of the mask, which the runs must cover exactly.
    """
    runs = _listed_runs(counts) if isinstance(counts, list) else run_lengths(counts.encode("ascii", "ignore"))
    if runs is None or not len(runs) or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        return None
    if isinstance(counts, list):
        return compressed_runs(runs)
    return counts.encode("ascii") if counts.isascii() else None


def _listed_runs(counts: list[Any]) -> Int64[ndarray, "n"] | None:
    # Compared by type, because Python's truth values are integers, too.
    if set(map(type, counts)) != {int}:
        return None
    try:
        return np.frombuffer(array("q", counts), np.int64)
    except OverflowError:
        return None


def run_lengths(counts: bytes) -> Int64[ndarray, "n"] | None:
    """Decodes run lengths in COCO's compressed form; returns None if it is malformed.

    Each run is written in groups of 5 bits, the lowest first. A group is a character with a code
    from 48 on, to which 32 is added if another group follows; 16 in the last group is the sign.
    From the fourth run on, the number is the difference from the second to last run.
    """
    codes = np.frombuffer(counts, np.uint8) - np.uint8(48)
    if not len(codes) or codes.max() > 63:
        return None
    pieces, start = [], 0
    while start < len(codes):
        last = np.flatnonzero(codes[start : start + _SLICE] & 32 == 0)
        if not len(last) or np.diff(last, prepend=-1).max() > _MOST_GROUPS:
            return None
        pieces.append(_numbers(codes[start : start + last[-1] + 1].astype(np.int64), last))
        start += int(last[-1]) + 1
    runs = np.concatenate(pieces)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _numbers(groups: Int64[ndarray, "n"], last: Int64[ndarray, "m"]) -> Int64[ndarray, "m"]:
    """Decodes groups to numbers, given the position of each number's last group."""
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(groups)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((groups & 31) << shift, first)
    return numbers - np.where(groups[last] & 16, np.int64(1) << (shift[last] + 5), 0)


def compressed_runs(runs: Int64[ndarray, "n"]) -> bytes | None:
    """Encodes run lengths, as the inverse of `run_lengths`; returns None if a number is too long.

    pycocotools' own encoder writes a byte beyond its memory if all numbers have the greatest
    length.
    """
    written = runs.copy()
    written[3:] -= runs[1:-2]
    if np.abs(written).max() > _LARGEST_NUMBER:
        return None
    return b"".join(_groups(written[start : start + _SLICE]) for start in range(0, len(written), _SLICE))


def _groups(numbers: Int64[ndarray, "n"]) -> bytes:
    longest = int(np.abs(numbers).max()).bit_length() // 5 + 1
    rest = numbers[:, None] >> 5 * np.arange(longest)
    # A group is the last one if the rest of the number fits into 5 bits with a sign.
    more = (rest < -16) | (rest > 15)
    used = np.ones_like(more)
    used[:, 1:] = more[:, :-1]
    return ((rest & 31) + 48 + 32 * more)[used].astype(np.uint8).tobytes()
