"""Sampling as products of matrices: the weights of all pixels at each point, times the pixels.

It reads and writes whole rows only, which suits TPUs while the map is small: the cost is the square
of the number of pixels. The matrix of weights is made in blocks of as many points as the map has
channels, so that a block takes as much memory as the map.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxseg.ops.deform_conv.sampling import Corners


def sample(pixels: Array, corners: Corners) -> Array:
    """See `gather.sample`."""

    def point(corner: Corners) -> Array:
        weights = _weights(corner, len(pixels), pixels.dtype)
        return _product("n,nc->c", weights, pixels)

    return _by_blocks(point, corners, pixels.shape[-1])


def products(pixels: Array, corners: Corners, gradient: Array) -> Array:
    """See `gather.products`."""

    def point(values: tuple[Corners, Array]) -> Array:
        corner, gradient = values
        every = _product("nc,c->n", pixels, gradient)
        index = jnp.arange(len(pixels), dtype=jnp.int32)
        return jnp.stack([jnp.where(index == corner.pixels[i], every, 0.0).sum() for i in range(4)])

    return _by_blocks(point, (corners, gradient), pixels.shape[-1])


def spread(corners: Corners, gradient: Array, count: int) -> Array:
    """See `gather.spread`."""
    points = len(gradient)
    block = min(points, gradient.shape[-1])
    padding = -points % block
    # Points without weights add nothing.
    blocks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1))).reshape(-1, block, *x.shape[1:]), (corners, gradient)
    )

    def add(total: Array, values: tuple[Corners, Array]) -> tuple[Array, None]:
        corner, gradient = values
        weights = jax.vmap(lambda c: _weights(c, count, gradient.dtype))(corner)
        return total + _product("pn,pc->nc", weights, gradient), None

    total, _ = jax.lax.scan(add, jnp.zeros((count, gradient.shape[-1]), jnp.float32), blocks)
    return total


def _weights(corner: Corners, count: int, dtype: Any) -> Array:
    """Returns the weights of all pixels of the map at one point, `[N]`."""
    index = jnp.arange(count, dtype=jnp.int32)
    total = jnp.zeros(count, jnp.float32)
    for i in range(4):
        total += jnp.where(index == corner.pixels[i], corner.weights[i], 0.0)
    return total.astype(dtype)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _by_blocks(point: Callable[[Any], Array], values: Any, block: int) -> Array:
    """Calls a function of one point for all points, `block` points at a time."""
    result: Array = jax.lax.map(point, values, batch_size=block)
    return result
