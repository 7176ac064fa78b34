"""How others lay out the numbers of a parameter, beside how we do: each layout goes both ways."""

import dataclasses
from collections.abc import Callable

import numpy as np

Rearrange = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """What to do with another project's array to have ours, and the way back.

    Neither asks whether the shape is a model's: an array of another shape comes out as one, and the loader says so.
    """

    to_ours: Rearrange
    to_theirs: Rearrange


# `[out, in, h, w]` as Flax has it, `[h, w, in, out]`.
CONVOLUTION = Layout(lambda kernel: kernel.transpose(2, 3, 1, 0), lambda kernel: kernel.transpose(3, 2, 0, 1))
# `[in, out, h, w]`, not flipped: `out[2y+i, 2x+j] = x[y, x] @ kernel[i, j]` where windows do not overlap.
TRANSPOSED_CONVOLUTION = Layout(lambda kernel: kernel.transpose(2, 3, 0, 1), lambda kernel: kernel.transpose(2, 3, 0, 1))
DENSE = Layout(lambda kernel: kernel.T, lambda kernel: kernel.T)
# A stem that takes blue first.
BGR = Layout(lambda kernel: kernel[:, ::-1], lambda kernel: kernel[:, ::-1])
# Logits that begin with the background, which is our last.
BACKGROUND_FIRST = Layout(lambda rows: np.roll(rows, -1, 0), lambda rows: np.roll(rows, 1, 0))


def without_background(rows: int) -> Layout:
    """Outputs that begin with so many rows for the background, which nobody looks at. Back there they are zeros."""
    return Layout(lambda values: values[rows:], lambda values: np.concatenate([np.zeros((rows, *values.shape[1:]), values.dtype), values]))


def flattened(size: int) -> Layout:
    """A dense layer's kernel `[out, in]` over regions of `size` by `size` cells that were flattened channels first, ours last."""
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
    """Outputs of each anchor, in the order of size and then aspect ratio; ours are in the order of aspect ratio and then size."""

    def swap(values: np.ndarray, outer: int, inner: int) -> np.ndarray:
        if values.shape[0] % (outer * inner):
            return values
        return values.reshape(outer, inner, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)

    return Layout(lambda values: swap(values, sizes, ratios), lambda values: swap(values, ratios, sizes))
