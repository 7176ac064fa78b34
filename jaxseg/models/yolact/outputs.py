"""What YOLACT's network computes."""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float32


@struct.dataclass
class YolactOutputs:
    """Raw outputs; `A` anchors in the order level, y, x, shape; the background is the first class logit.

    `mask_coefficients` have passed their tanh, `prototypes` their ReLU; `segmentation_logits` exist in training only.
    """

    box_deltas: Float32[Array, "*B A 4"]
    class_logits: Float32[Array, "*B A C1"]
    mask_coefficients: Float32[Array, "*B A K"]
    prototypes: Float32[Array, "*B h w K"]
    segmentation_logits: Float32[Array, "*B hs ws C"] | None


def corner_scale(size: tuple[int, int]) -> Float32[Array, "4"]:
    """The factors from corners in fractions to pixels of a map.

    Args:
        size: height and width of the map.
    """
    return jnp.array([size[1], size[0], size[1], size[0]], jnp.float32)
