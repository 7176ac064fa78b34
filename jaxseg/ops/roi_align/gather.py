"""RoIAlign as a sum over the pixels that each sample reads, for a fixed number of samples."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import Array

from jaxseg.ops.roi_align.bilinear import Geometry, axes, lengths, taps


def pool(geometry: Geometry, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    """Computes the cells of each RoI, float32 `[B, R, P, P, C]`.

    Args:
        geometry: the call.
        features: the levels of the pyramid, `[B, h, w, C]` each.
        boxes: `x1, y1, x2, y2` in pixels of the network's input, `[B, R, 4]`.
        levels: the index of the level of each box, `[B, R]`.
    """

    def image(features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
        table = jnp.concatenate([feature.reshape(-1, feature.shape[-1]) for feature in features])
        total = jnp.asarray(0.0, jnp.float32)
        for row, weight in _terms(geometry, boxes, levels):
            total += table[row].astype(jnp.float32) * weight[..., None]
        return total

    return jax.vmap(image)(features, boxes, levels)


def spread(geometry: Geometry, gradient: Array, boxes: Array, levels: Array) -> tuple[Array, ...]:
    """Computes the gradient of the features from that of the cells, float32.

    Args:
        geometry: the call.
        gradient: the gradient of the cells, `[B, R, P, P, C]`.
        boxes: see `pool`.
        levels: see `pool`.
    """
    areas, channels = geometry.areas, gradient.shape[-1]

    def image(gradient: Array, boxes: Array, levels: Array) -> Array:
        # All terms are added to one table, because a sum of tables would take most of the time.
        table = jnp.zeros((sum(areas), channels), jnp.float32)
        for row, weight in _terms(geometry, boxes, levels):
            table = table.at[row].add(gradient.astype(jnp.float32) * weight[..., None])
        return table

    table = jax.vmap(image)(gradient, boxes, levels)
    parts = jnp.split(table, [sum(areas[:level]) for level in range(1, len(areas))], 1)
    return tuple(part.reshape(-1, *size, channels) for part, size in zip(parts, geometry.sizes, strict=True))


def _terms(geometry: Geometry, boxes: Array, levels: Array) -> Iterator[tuple[Array, Array]]:
    """Yields the terms of the sum over a cell: pixels and their weights, `[R, P, P]` each.

    Pixels are rows of a table with all pixels of all levels of one image.
    """
    heights, widths = lengths(geometry, levels)
    first = jnp.asarray([sum(geometry.areas[:level]) for level in range(len(geometry.sizes))], jnp.int32)[levels]
    y_axis, x_axis = axes(geometry, boxes, levels)
    y, x = taps(geometry, y_axis, heights), taps(geometry, x_axis, widths)
    for i in range(2 * geometry.sampling_ratio):
        for j in range(2 * geometry.sampling_ratio):
            in_level = y.pixels[:, :, None, i] * widths[:, None, None] + x.pixels[:, None, :, j]
            yield first[:, None, None] + in_level, y.weights[:, :, None, i] * x.weights[:, None, :, j]
