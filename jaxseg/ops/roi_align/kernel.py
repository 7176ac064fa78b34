"""RoIAlign with the kernels for GPUs: the preparation of their arguments, and their limits."""

import jax.numpy as jnp
from jax import Array

from jaxseg.ops.roi_align.bilinear import Geometry, axes, lengths, taps, weights

# The threads of a program, which share the channels of a pixel evenly.
LANES = 128
# For up to this many samples in a row of a cell, the kernel adds the pixels of each sample. With
# more samples, or adaptive ones, it sums all pixels under a cell.
MOST_WRITTEN_OUT = 2


def obstacle(array: Array) -> str | None:
    """Returns why the kernels do not support features or gradients of cells, or None."""
    if array.dtype not in (jnp.float32, jnp.bfloat16):
        return f"features are {array.dtype}, and it takes float32 and bfloat16"
    if array.shape[-1] % LANES:
        return f"{array.shape[-1]} channels are no multiple of {LANES}"
    return None


def pool(geometry: Geometry, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    """Computes the cells of each RoI, `[B, R, P, P, C]`, in the type of the features.

    Args:
        geometry: the call.
        features: the levels of the pyramid, `[B, h, w, C]` each.
        boxes: `x1, y1, x2, y2` in pixels of the network's input, `[B, R, 4]`.
        levels: the index of the level of each box, `[B, R]`.
    """
    from jaxseg.ops.kernels import roi_align as kernels

    if not 0 < geometry.sampling_ratio <= MOST_WRITTEN_OUT:
        return kernels.pool_pixels(features, levels, *_weights_of_own_level(geometry, boxes, levels))
    both = zip(axes(geometry, boxes, levels), lengths(geometry, levels), strict=True)
    return kernels.pool_samples(features, levels, *(taps(geometry, axis, length) for axis, length in both))


def spread(geometry: Geometry, gradient: Array, boxes: Array, levels: Array) -> tuple[Array, ...]:
    """Computes the gradient of the features from that of the cells, in the same type.

    Args:
        geometry: the call.
        gradient: the gradient of the cells, `[B, R, P, P, C]`.
        boxes: see `pool`.
        levels: see `pool`.
    """
    from jaxseg.ops.kernels import roi_align as kernels

    return kernels.spread(gradient, levels, *_weights_of_own_level(geometry, boxes, levels), sizes=geometry.sizes)


def _weights_of_own_level(geometry: Geometry, boxes: Array, levels: Array) -> tuple[Array, Array]:
    """Computes the weights of rows `[B, R, P, H]` and columns `[B, R, P, W]` for each RoI.

    H and W are the sides of the largest level; beyond the RoI's own level, weights are 0.
    """
    rows, columns = (
        weights(geometry, axis, jnp.arange(max(sides)), own[..., None, None])
        for axis, sides, own in zip(
            axes(geometry, boxes, levels), zip(*geometry.sizes, strict=True), lengths(geometry, levels), strict=True
        )
    )
    return rows, columns
