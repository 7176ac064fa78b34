"""The sampling points of a deformable convolution, and the four pixels around each of them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Geometry(NamedTuple):
    """The static properties of a call of `deform_conv`.

    Attributes:
        size: the height and width of the input.
        kernel_size: the height and width of the kernel.
        output_size: the height and width of the result.
        stride: the distance of neighbouring windows, along y and x.
        padding: the number of pixels by which the first window lies outside of the input.
        dilation: the distance of neighbouring taps.
    """

    size: tuple[int, int]
    kernel_size: tuple[int, int]
    output_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Returns the number of pixels of the input."""
        return self.size[0] * self.size[1]

    def taps(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the undisplaced points: y and x of each tap, row by row, float32 `[K, P]`."""
        rows, columns = (
            np.arange(taps)[:, None] * dilation + np.arange(windows) * stride - padding
            for taps, windows, dilation, stride, padding in zip(
                self.kernel_size, self.output_size, self.dilation, self.stride, self.padding, strict=True
            )
        )
        shape = (*self.kernel_size, *self.output_size)
        y = np.broadcast_to(rows[:, None, :, None], shape)
        x = np.broadcast_to(columns[None, :, None, :], shape)
        taps = self.kernel_size[0] * self.kernel_size[1]
        return y.reshape(taps, -1).astype(np.float32), x.reshape(taps, -1).astype(np.float32)


class Corners(NamedTuple):
    """The four pixels around each point, with their bilinear weights, `[*n, 4]` each.

    Attributes:
        pixels: the indices of the pixels, row by row; that of a pixel outside of the map is some
            other's, with a weight of 0.
        weights: their weights.
        slopes_y: the derivatives of the weights by the point's y.
        slopes_x: the derivatives of the weights by the point's x.
    """

    pixels: Array
    weights: Array
    slopes_y: Array
    slopes_x: Array


def corners(geometry: Geometry, y: Array, x: Array) -> Corners:
    """Finds the four pixels around each point, `[*n]`.

    Pixels outside of the map count as 0. Points that are a pixel or more outside of it have no
    value and no derivatives, as in the originals, whatever their coordinates.
    """
    height, width = geometry.size
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = jnp.where(inside, y, 0.0), jnp.where(inside, x, 0.0)
    top, left = jnp.floor(y), jnp.floor(x)
    row = jnp.stack([top, top, top + 1, top + 1], -1)
    column = jnp.stack([left, left + 1, left, left + 1], -1)
    below, right = y[..., None] - top[..., None], x[..., None] - left[..., None]
    is_below, is_right = jnp.array([0, 0, 1, 1]), jnp.array([0, 1, 0, 1])
    weight_y, weight_x = jnp.where(is_below, below, 1 - below), jnp.where(is_right, right, 1 - right)
    counts = inside[..., None] & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixels = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    return Corners(
        pixels=pixels.astype(jnp.int32),
        weights=jnp.where(counts, weight_y * weight_x, 0.0),
        slopes_y=jnp.where(counts, (2.0 * is_below - 1) * weight_x, 0.0),
        slopes_x=jnp.where(counts, (2.0 * is_right - 1) * weight_y, 0.0),
    )
