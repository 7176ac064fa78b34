"""The choice of the level of a feature pyramid from which a box is pooled."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from jaxseg.ops.boxes import box_area
from jaxseg.ops.roi_align.bilinear import quotient
from jaxseg.structures import AnyArray

# The reference box of FPN's rule: the square root of its area in pixels, and its level. It is an
# ImageNet picture on P4 (arXiv:1612.03144, equation 1).
CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4


def pyramid_levels(
    boxes: Float32[AnyArray, "*b R 4"],
    *,
    finest: int = 2,
    coarsest: int = 5,
    pixel_offset: float = 0.0,
    ratio_epsilon: float = 0.0,
    level_epsilon: float = 0.0,
) -> Int32[Array, "*b R"]:
    """Returns the level from which each box is pooled.

    It is `floor(4 + log2(sqrt(area) / 224))`, limited to the existing levels.

    Args:
        boxes: `x1, y1, x2, y2` in pixels of the network's input.
        finest: the lowest existing level.
        coarsest: the highest existing level.
        pixel_offset: the number that is added to widths and heights (1 in maskrcnn-benchmark).
        ratio_epsilon: the number that is added to the quotient under the logarithm: 1e-6 in
            maskrcnn-benchmark and 1e-8 in detectron2. mmdetection adds 1e-6 to `sqrt(area) / 56`,
            which is 2.5e-7 here.
        level_epsilon: the number that is added to the level before it is rounded down (1e-6 in
            torchvision).
    """
    side = jnp.sqrt(jnp.maximum(box_area(boxes, pixel_offset), 0.0))
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(quotient(side, CANONICAL_SIDE) + ratio_epsilon) + level_epsilon)
    return jnp.clip(level, finest, coarsest).astype(jnp.int32)
