"""The positions of RoIAlign's samples, and the weights of pixels in them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxseg.ops.boxes import rounded

# The distance of adaptive samples is more than half a pixel, so at most 4 of them are within a
# pixel of a given one; 2 more allow for rounding.
_NEIGHBORS = 6


class Geometry(NamedTuple):
    """The static properties of a call of `roi_align`.

    Attributes:
        sizes: the height and width of each level.
        strides: see `roi_align`.
        output_size: see `roi_align`.
        sampling_ratio: see `roi_align`.
        aligned: see `roi_align`.
    """

    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    output_size: int
    sampling_ratio: int
    aligned: bool

    @property
    def areas(self) -> list[int]:
        """Returns the number of pixels of each level."""
        return [height * width for height, width in self.sizes]


class Axis(NamedTuple):
    """The samples of RoIs along y or x.

    Attributes:
        start: the start of the RoI, in pixels of its level.
        cell: the length of a cell, in pixels of the level.
        samples: the number of samples in a cell.
    """

    start: Array
    cell: Array
    samples: Array


class Taps(NamedTuple):
    """The pixels that samples along one axis read, and their weights, `[*n, P, 2 * samples]` each.

    Each sample reads two pixels. The sum with the weights of a cell is the mean of its samples.
    """

    pixels: Array
    weights: Array


def axes(geometry: Geometry, boxes: Array, levels: Array) -> tuple[Axis, Axis]:
    """Makes the samples along y and x, `[*b, R]`, of boxes `[*b, R, 4]` on levels `[*b, R]`."""
    scale = jnp.asarray([1.0 / stride for stride in geometry.strides], jnp.float32)[levels]
    shift = 0.5 if geometry.aligned else 0.0

    def axis(low: Array, high: Array) -> Axis:
        start = low * scale - shift
        size = high * scale - shift - start
        size = size if geometry.aligned else jnp.maximum(size, 1.0)
        cell = quotient(size, float(geometry.output_size))
        if geometry.sampling_ratio:
            return Axis(start, cell, jnp.full_like(cell, geometry.sampling_ratio))
        return Axis(start, cell, pixels_of_cell(size, cell, geometry.output_size))

    return axis(boxes[..., 1], boxes[..., 3]), axis(boxes[..., 0], boxes[..., 2])


def lengths(geometry: Geometry, levels: Array) -> tuple[Array, Array]:
    """Returns the height and the width of the level of each RoI."""
    heights, widths = (jnp.asarray(side, jnp.int32)[levels] for side in zip(*geometry.sizes, strict=True))
    return heights, widths


def pixels_of_cell(size: Array, cell: Array, cells: int) -> Array:
    """Returns the number of adaptive samples, which is `ceil(size / cells)` and at least 0.

    It is exact even if `cell` is a quotient with one or two rounding errors, as on GPUs.
    """
    count = jnp.ceil(cell)
    count = count - ((count - 1.0) * cells >= size) + (count * cells < size)
    return jnp.maximum(count, 0.0)


def quotient(a: Array, b: Array | float) -> Array:
    """Computes the quotient `a / b` with a single rounding, as in a division.

    XLA would replace a division by a constant by a product with the rounded reciprocal. On GPUs,
    the last one or two bits of a division may be wrong.
    """
    return a / jnp.where(jnp.isnan(a), jnp.nan, b)


def weights(geometry: Geometry, axis: Axis, pixels: Array, length: Array | int) -> Array:
    """Computes the mean weight of each pixel in the cells of each RoI, `[*n, P, K]`.

    Args:
        geometry: the call.
        axis: the samples of RoIs, `[*n]`.
        pixels: the indices of pixels along the axis, `[*n, K]` or `[K]`.
        length: the length of the level, one for all RoIs or `[*n, 1, 1]`.
    """
    axis = _of_cells(axis)
    pixels = pixels[..., None, :].astype(jnp.float32)
    cells = jnp.arange(geometry.output_size, dtype=jnp.float32)[:, None]
    if geometry.sampling_ratio:
        indices = [jnp.float32(i) for i in range(geometry.sampling_ratio)]
    else:
        # A cell of less than half a pixel has one sample, whose index a larger step also finds.
        step = jnp.maximum(axis.cell / jnp.maximum(axis.samples, 1.0), 0.5)
        first = jnp.floor((pixels - 1.0 - axis.start - cells * axis.cell) / step - 0.5)
        indices = [first + i for i in range(_NEIGHBORS)]
    total = jnp.asarray(0.0, jnp.float32)
    for index in indices:
        position = _sample(axis, cells, index)
        counts = _is_near(position, length) & (index >= 0) & (index < axis.samples)
        bilinear = jnp.maximum(1.0 - jnp.abs(jnp.clip(position, 0.0, length - 1.0) - pixels), 0.0)
        total += jnp.where(counts, bilinear, 0.0)
    return total / jnp.maximum(axis.samples, 1.0)


def taps(geometry: Geometry, axis: Axis, length: Array) -> Taps:
    """Returns the pixels that each sample reads, for a fixed number of samples.

    Args:
        geometry: the call.
        axis: the samples of RoIs, `[*n]`.
        length: the length of the level of each RoI, `[*n]`.
    """
    axis, length = _of_cells(axis), length[..., None, None]
    cells = jnp.arange(geometry.output_size, dtype=jnp.float32)[:, None]
    position = _sample(axis, cells, jnp.arange(geometry.sampling_ratio, dtype=jnp.float32))
    share = jnp.where(_is_near(position, length), 1.0 / geometry.sampling_ratio, 0.0)
    position = jnp.clip(position, 0.0, length - 1.0)
    low = jnp.floor(position)
    high = jnp.minimum(low + 1.0, length - 1.0)
    pixels = jnp.concatenate([low, high], -1).astype(jnp.int32)
    return Taps(pixels, jnp.concatenate([share * (1.0 - (position - low)), share * (position - low)], -1))


def _of_cells(axis: Axis) -> Axis:
    """Adds two trailing axes, for cells and for samples or pixels."""
    return Axis(*(value[..., None, None] for value in axis))


def _sample(axis: Axis, cells: Array, index: Array) -> Array:
    """Returns the position of the sample `index` of each cell, in pixels of the level.

    It is rounded as in the originals, to the last bit.
    """
    return axis.start + rounded(cells * axis.cell) + quotient((index + 0.5) * axis.cell, jnp.maximum(axis.samples, 1.0))


def _is_near(position: Array, length: Array | int) -> Array:
    """Returns whether a sample counts, which is in the level or at most a pixel outside."""
    return (position >= -1.0) & (position <= length)


def einsum(subscripts: str, a: Array, b: Array) -> Array:
    """Computes a product with float32 sums; rounded weights would be inaccurate and save little."""
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
