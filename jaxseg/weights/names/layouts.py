"""Conversions between other projects' layouts of a parameter and ours, in both directions."""

import dataclasses
from collections.abc import Callable

import numpy as np

Rearrange = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A conversion from another project's layout of an array to ours, and back.

    It does not check that the array's shape is the model's; the loader compares shapes afterwards.
    """

    to_ours: Rearrange
    to_theirs: Rearrange


# PyTorch's `[out, in, h, w]` to Flax's `[h, w, in, out]`.
CONVOLUTION = Layout(lambda kernel: kernel.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1))
# PyTorch's `[in, out, h, w]` to `[h, w, in, out]`. The kernel is not flipped, because the windows
# do not overlap: `out[2y+i, 2x+j] = x[y, x] @ kernel[i, j]`.
TRANSPOSED_CONVOLUTION = Layout(lambda kernel: kernel.transpose(2, 3, 0, 1), lambda kernel: kernel.transpose(2, 3, 0, 1))
DENSE = Layout(lambda kernel: kernel.T, lambda kernel: kernel.T)
# The kernel of a stem whose input channels are blue, green and red.
BGR = Layout(lambda kernel: kernel[:, ::-1], lambda kernel: kernel[:, ::-1])
# Class logits whose first row is the background's; in ours, it is the last.
BACKGROUND_FIRST = Layout(lambda rows: np.roll(rows, -1, 0), lambda rows: np.roll(rows, 1, 0))


def without_background(rows: int) -> Layout:
    """Returns the layout of outputs that begin with unused rows for the background.

    The way back fills these rows with zeros.

    Args:
        rows: the number of rows for the background.
    """
    return Layout(lambda values: values[rows:], lambda values: np.concatenate([np.zeros((rows, *values.shape[1:]), values.dtype), values]))


def flattened(size: int) -> Layout:
    """Returns the layout of a dense kernel `[out, in]` over flattened regions.

    The other project flattens a region with its channels first, and we with its channels last.

    Args:
        size: the side of a region in cells.
    """
    cells = size * size

    def regroup(kernel: np.ndarray, groups: int) -> np.ndarray:
        return kernel.reshape(len(kernel), groups, -1).swapaxes(1, 2).reshape(kernel.shape)

    def channels(kernel: np.ndarray) -> int:
        return kernel.shape[1] // cells

    def fits(kernel: np.ndarray) -> bool:
        return kernel.ndim == 2 and kernel.shape[1] % cells == 0

    return Layout(
        lambda kernel: regroup(kernel, channels(kernel)) if fits(kernel) else kernel,
        lambda kernel: regroup(kernel, cells) if fits(kernel) else kernel,
    )


def anchors_by_size(sizes: int, ratios: int) -> Layout:
    """Returns the layout of outputs for the anchors of a cell, in the order size, aspect ratio.

    Ours are in the order aspect ratio, size.

    Args:
        sizes: the number of sizes.
        ratios: the number of aspect ratios.
    """

    def swap(values: np.ndarray, outer: int, inner: int) -> np.ndarray:
        if values.shape[0] % (outer * inner):
            return values
        return values.reshape(outer, inner, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)

    return Layout(lambda values: swap(values, sizes, ratios), lambda values: swap(values, ratios, sizes))
