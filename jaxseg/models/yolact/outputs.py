"""The raw outputs of YOLACT's network."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float32


@struct.dataclass
class YolactOutputs:
    """The raw outputs for `A` anchors, in the order level, y, x, shape.

    The first class logit is the background's. The tanh of `mask_coefficients` and the ReLU of
    `prototypes` have been applied. `segmentation_logits` exist in training only.
    """

    box_deltas: Float32[Array, "*B A 4"]
    class_logits: Float32[Array, "*B A C1"]
    mask_coefficients: Float32[Array, "*B A K"]
    prototypes: Float32[Array, "*B h w K"]
    segmentation_logits: Float32[Array, "*B hs ws C"] | None


def corner_scale(size: tuple[int, int]) -> Float32[Array, "4"]:
    """Returns the factors that convert corners from fractions to pixels of a map.

    Args:
        size: the height and width of the map.
    """
    return jnp.array([size[1], size[0], size[1], size[0]], jnp.float32)
