"""RoIAlign as two matrix products of each RoI with whole levels, for any number of samples."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxseg.ops.roi_align.bilinear import Geometry, axes, einsum, weights

# The limit in bytes for the intermediate results between the two products with one level.
MOST_BYTES = 2**28


def pool(geometry: Geometry, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    """Computes the cells of each RoI, float32 `[B, R, P, P, C]`.

    Args:
        geometry: the call.
        features: the levels of the pyramid, `[B, h, w, C]` each.
        boxes: `x1, y1, x2, y2` in pixels of the network's input, `[B, R, 4]`.
        levels: the index of the level of each box, `[B, R]`.
    """
    largest = geometry.output_size * max(width for _, width in geometry.sizes) * features[0].shape[-1] * 4

    def image(features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
        def roi(box_and_level: tuple[Array, Array]) -> Array:
            box, own_level = box_and_level
            y_axis, x_axis = axes(geometry, box, own_level)
            total = jnp.asarray(0.0, jnp.float32)
            for level, (feature, (height, width)) in enumerate(zip(features, geometry.sizes, strict=True)):
                rows = jnp.where(own_level == level, weights(geometry, y_axis, jnp.arange(height), height), 0.0)
                columns = weights(geometry, x_axis, jnp.arange(width), width)
                total += einsum("qw,pwc->pqc", columns, einsum("ph,hwc->pwc", rows, feature))
            return total

        return jax.lax.map(roi, (boxes, levels), batch_size=max(1, MOST_BYTES // largest))

    return jax.vmap(image)(features, boxes, levels)


def spread(geometry: Geometry, gradient: Array, boxes: Array, levels: Array) -> tuple[Array, ...]:
    """Computes the gradient of the features from that of the cells, float32.

    Args:
        geometry: the call.
        gradient: the gradient of the cells, `[B, R, P, P, C]`.
        boxes: see `pool`.
        levels: see `pool`.
    """
    shapes = tuple(jax.ShapeDtypeStruct((len(boxes), *size, gradient.shape[-1]), jnp.float32) for size in geometry.sizes)
    transposed = jax.linear_transpose(lambda features: pool(geometry, features, boxes, levels), shapes)
    (gradients,) = transposed(gradient.astype(jnp.float32))
    return tuple(gradients)
