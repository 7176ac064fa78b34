"""RoIAlign as a loop over RoIs, with two small products of the pixels under each RoI.

It supports any number of samples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxseg.ops.roi_align.bilinear import Axis, Geometry, axes, einsum, weights

# The rows and columns of pixels that an iteration slices from a level. RoIs of a pyramid are seldom
# wider than 28 pixels.
WINDOW = (12, 24)


class _Window(NamedTuple):
    """A part of the pixels under one RoI.

    Attributes:
        roi: the row of the RoI.
        corner: the start of the window: image, y, x and channel.
        rows: the weights of its rows of pixels.
        columns: the weights of its columns of pixels.
    """

    roi: Array
    corner: tuple[Array | int, ...]
    rows: Array
    columns: Array


class _Extent(NamedTuple):
    """The pixels that each RoI reads along one axis: the first one, and their number."""

    first: Array
    size: Array


def pool(geometry: Geometry, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    """Computes the cells of each RoI, float32 `[B, R, P, P, C]`.

    Args:
        geometry: the call.
        features: the levels of the pyramid, `[B, h, w, C]` each.
        boxes: `x1, y1, x2, y2` in pixels of the network's input, `[B, R, 4]`.
        levels: the index of the level of each box, `[B, R]`.
    """
    channels, cells = features[0].shape[-1], geometry.output_size
    output = jnp.zeros((levels.size, cells, cells, channels), jnp.float32)
    for level, feature in enumerate(features):

        def pool_window(output: Array, window: _Window, feature: Array = feature) -> Array:
            shape = (1, window.rows.shape[-1], window.columns.shape[-1], channels)
            pixels = jax.lax.dynamic_slice(feature, window.corner, shape)[0].astype(jnp.float32)
            pooled = einsum("ph,hqc->pqc", window.rows, einsum("hqw,hwc->hqc", _for_each_row(window), pixels))
            own = jax.lax.dynamic_index_in_dim(output, window.roi, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(output, own + pooled, window.roi, 0)

        output = _fold_windows(geometry, boxes, levels, level=level, step=pool_window, start=output)
    return output.reshape(*levels.shape, cells, cells, channels)


def spread(geometry: Geometry, gradient: Array, boxes: Array, levels: Array) -> tuple[Array, ...]:
    """Computes the gradient of the features from that of the cells, float32.

    Args:
        geometry: the call.
        gradient: the gradient of the cells, `[B, R, P, P, C]`.
        boxes: see `pool`.
        levels: see `pool`.
    """
    flat = gradient.reshape(-1, *gradient.shape[2:])

    def spread_window(total: Array, window: _Window) -> Array:
        own = jax.lax.dynamic_index_in_dim(flat, window.roi, keepdims=False).astype(jnp.float32)
        pixels = einsum("hqw,hqc->hwc", _for_each_row(window), einsum("ph,pqc->hqc", window.rows, own))[None]
        return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, window.corner, pixels.shape) + pixels, window.corner)

    zeros = [jnp.zeros((len(boxes), *size, gradient.shape[-1]), jnp.float32) for size in geometry.sizes]
    return tuple(_fold_windows(geometry, boxes, levels, level=level, step=spread_window, start=start) for level, start in enumerate(zeros))


def _fold_windows(
    geometry: Geometry, boxes: Array, levels: Array, *, level: int, step: Callable[[Array, _Window], Array], start: Array
) -> Array:
    """Applies `step` to the windows that cover the RoIs of one level, one after the other.

    Args:
        geometry: the call.
        boxes: see `pool`.
        levels: see `pool`.
        level: the index of the level.
        step: a function of its result for the window before, and of a window.
        start: the value that replaces this result for the first window.
    """
    if not levels.size:
        return start
    rois_per_image = boxes.shape[1]
    boxes, levels = boxes.reshape(-1, 4), levels.reshape(-1)
    both_axes, lengths = axes(geometry, boxes, levels), geometry.sizes[level]
    sides = tuple(min(side, length) for side, length in zip(WINDOW, lengths, strict=True))
    extents = tuple(_extent(geometry, axis, length) for axis, length in zip(both_axes, lengths, strict=True))
    tiles = tuple(-(-extent.size // side) for extent, side in zip(extents, sides, strict=True))
    (rois,) = jnp.nonzero(levels == level, size=len(boxes), fill_value=0)
    count = (levels == level).sum()

    def visit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        position, tile, carry = state
        roi = rois[position]
        corner: list[Array] = []
        pixel_weights: list[Array] = []
        for axis, extent, length, side, index in zip(both_axes, extents, lengths, sides, jnp.divmod(tile, tiles[1][roi]), strict=True):
            first = extent.first[roi] + index * side
            # At the border the window is moved back, over pixels that an earlier one may contain.
            corner.append(jnp.minimum(first, length - side))
            pixels = corner[-1] + jnp.arange(side)
            own = Axis(*(values[roi] for values in axis))
            pixel_weights.append(jnp.where(pixels >= first, weights(geometry, own, pixels, length), 0.0))
        carry = step(carry, _Window(roi, (roi // rois_per_image, *corner, 0), *pixel_weights))
        done = tile + 1 == tiles[0][roi] * tiles[1][roi]
        return jnp.where(done, position + 1, position), jnp.where(done, 0, tile + 1), carry

    return jax.lax.while_loop(lambda state: state[0] < count, visit, (jnp.int32(0), jnp.int32(0), start))[2]


def _extent(geometry: Geometry, axis: Axis, length: int) -> _Extent:
    end = axis.start + axis.cell * geometry.output_size
    first = jnp.floor(jnp.clip(jnp.minimum(axis.start, end), 0, length - 1)).astype(jnp.int32)
    last = jnp.floor(jnp.clip(jnp.maximum(axis.start, end), 0, length - 1)).astype(jnp.int32) + 1
    return _Extent(first, jnp.minimum(last, length - 1) - first + 1)


def _for_each_row(window: _Window) -> Array:
    """Repeats the weights of the columns for the rows of pixels.

    A batched product keeps the layout of the pixels, while a plain one would transpose them.
    """
    return jnp.broadcast_to(window.columns, (window.rows.shape[-1], *window.columns.shape))
