"""Run lengths of masks in COCO's two forms, checked and written without pycocotools, which trusts them with its memory."""

from array import array
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

# Of a number in the compressed form: pycocotools reads wrong ones from longer numbers, and writes them beyond its memory.
_MOST_GROUPS = 6
_LARGEST_NUMBER = 2 ** (5 * _MOST_GROUPS - 1) - 1

# Groups that are read at once, and runs that are written, so that memory stays small.
_SLICE = 2**14


def checked_counts(counts: str | list, pixels: int) -> bytes | None:
    """Compressed run lengths that cover exactly so many pixels, or None: pycocotools would read beyond its memory."""
    runs = _listed_runs(counts) if isinstance(counts, list) else run_lengths(counts.encode("ascii", "ignore"))
    if runs is None or not len(runs) or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        return None
    if isinstance(counts, list):
        return compressed_runs(runs)
    return counts.encode("ascii") if counts.isascii() else None


def _listed_runs(counts: list[Any]) -> Int64[ndarray, "n"] | None:
    # A truth value is no number, though Python counts with it.
    if set(map(type, counts)) != {int}:
        return None
    try:
        return np.frombuffer(array("q", counts), np.int64)
    except OverflowError:
        return None


def run_lengths(counts: bytes) -> Int64[ndarray, "n"] | None:
    """The runs that COCO's compressed form stands for, or None where it is malformed.

    Each run is written in groups of 5 bits, lowest first, as one character from 48 on; 32 says that another group follows,
    16 in the last group is the sign. From the fourth run on it is the difference to the run before the last.
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
    """The numbers that groups stand for, where each number's last one is known."""
    first = np.concatenate([[0], last[:-1] + 1])
    shift = 5 * (np.arange(len(groups)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((groups & 31) << shift, first)
    return numbers - np.where(groups[last] & 16, np.int64(1) << (shift[last] + 5), 0)


def compressed_runs(runs: Int64[ndarray, "n"]) -> bytes | None:
    """The inverse of `run_lengths`, or None where a number would be too long.

    pycocotools' own writes a byte beyond its memory where all numbers have the greatest length.
    """
    written = runs.copy()
    written[3:] -= runs[1:-2]
    if np.abs(written).max() > _LARGEST_NUMBER:
        return None
    return b"".join(_groups(written[start : start + _SLICE]) for start in range(0, len(written), _SLICE))


def _groups(numbers: Int64[ndarray, "n"]) -> bytes:
    longest = int(np.abs(numbers).max()).bit_length() // 5 + 1
    rest = numbers[:, None] >> 5 * np.arange(longest)
    # A group is the last one where what is left of the number fits in 5 bits with their sign.
    more = (rest < -16) | (rest > 15)
    used = np.ones_like(more)
    used[:, 1:] = more[:, :-1]
    return ((rest & 31) + 48 + 32 * more)[used].astype(np.uint8).tobytes()
