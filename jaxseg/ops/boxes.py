"""Areas, overlaps and clipping of boxes `x1, y1, x2, y2`, in any unit that all boxes share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.structures import AnyArray

Boxes = Float32[AnyArray, "*n 4"]
# The height and width of a picture, as static numbers or as data.
Size = Sequence[int | float] | Int32[AnyArray, "2"] | Float32[AnyArray, "2"]


def centers_to_corners(boxes: Boxes) -> Float32[Array, "*n 4"]:
    """Converts boxes `cx, cy, w, h` to `x1, y1, x2, y2`."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - size / 2, center + size / 2], -1)


def box_area(boxes: Boxes, offset: float = 0.0) -> Float32[AnyArray, "*n"]:
    """Computes width times height; the offset is 1 if boxes end in their last pixel."""
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def pairwise_intersection(a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"], offset: float = 0.0) -> Float32[Array, "*b n m"]:
    """Computes the area of the intersection of each box of `a` with each box of `b`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    size = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]) + offset
    size = jnp.maximum(size, 0.0)
    return size[..., 0] * size[..., 1]


def rounded(product: Float32[AnyArray, "*n"]) -> Float32[AnyArray, "*n"]:
    """Returns the product unchanged, but makes sure that it is rounded before the next sum.

    A select prevents compilers from fusing a product and the next sum into one instruction with
    only one rounding. The originals round each product. The IoUs of many priors with an object are
    equal except for that rounding, which decides which of them learns the object.
    """
    return jnp.where(jnp.isnan(product), jnp.nan, product)


def quotient_reaches(a: Float32[AnyArray, "*n"], b: Float32[AnyArray, "*n"], least: np.float32) -> Bool[AnyArray, "*n"]:
    """Returns whether a / b, rounded to float32, is at least `least`, for a >= 0 and b > 0.

    Accelerators approximate quotients with errors of one or two units in the last place, and the
    IoUs of boxes at whole pixels are often equal to a threshold. So this function uses the sign of
    a - m b, where m is the mean of `least` and the next smaller float, which no quotient of two
    floats is equal to. The factors are split into halves of 12 bits, so that their products are
    exact, and so are their differences if the sign is in doubt. Products below 2^-100 would lose
    bits.
    """
    if least < np.finfo(np.float32).tiny:
        return a > 0 if least > 0 else a >= 0
    high = _upper_half(least)
    low = least - high
    half_gap = (least - np.nextafter(least, np.float32(0))) / np.float32(2)
    b_high = _upper_half(b)
    b_low = b - b_high
    return a - high * b_high - high * b_low - low * b_high - low * b_low > -half_gap * b


def _upper_half(x: Any) -> Any:
    """Returns a float's upper 12 of its 24 bits."""
    if isinstance(x, np.float32):
        return (x.view(np.int32) & np.int32(-4096)).view(np.float32)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -4096, jnp.float32)


def intersection_and_union(
    a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"], offset: float = 0.0
) -> tuple[Float32[AnyArray, "*b n m"], Float32[AnyArray, "*b n m"]]:
    """Computes the areas of the intersection and of the union of each box of `a` with each of `b`.

    The offset is 1 if boxes end in their last pixel.
    """
    intersection = rounded(pairwise_intersection(a, b, offset))
    area_a, area_b = rounded(box_area(a, offset)), rounded(box_area(b, offset))
    return intersection, area_a[..., :, None] + area_b[..., None, :] - intersection


def pairwise_iou(
    a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"], *, offset: float = 0.0, empty: float = 0.0
) -> Float32[Array, "*b n m"]:
    """Computes the intersection over union (IoU) of each box of `a` with each box of `b`.

    Args:
        a: `x1, y1, x2, y2`.
        b: `x1, y1, x2, y2`.
        offset: 1 if boxes end in their last pixel.
        empty: the result for two boxes that both have no area, whose quotient is undefined.
    """
    intersection, union = intersection_and_union(a, b, offset)
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), empty)


def pairwise_coverage(a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"]) -> Float32[Array, "*b n m"]:
    """Computes the fraction of each box of `a` within each box of `b`, for crowd regions."""
    area = box_area(a)[..., :, None]
    return jnp.where(area > 0, pairwise_intersection(a, b) / jnp.where(area > 0, area, 1.0), 0.0)


def clip_boxes(boxes: Boxes, picture_size: Size, *, pixel_offset: float = 0.0) -> Float32[Array, "*n 4"]:
    """Clips boxes to the picture.

    Args:
        boxes: `x1, y1, x2, y2` in pixels.
        picture_size: the height and width of the picture. Coordinates are limited to these minus
            `pixel_offset`.
        pixel_offset: 1 if boxes end in their last pixel, as in maskrcnn-benchmark.
    """
    height, width = picture_size
    limit = jnp.stack([jnp.asarray(width), jnp.asarray(height)] * 2).astype(jnp.float32) - pixel_offset
    return jnp.clip(boxes, 0.0, limit)


def longer_than(boxes: Boxes, length: float) -> Bool[Array, "*n"]:
    """Returns which boxes are both wider and higher than `length`."""
    boxes = jnp.asarray(boxes)
    return (boxes[..., 2:] - boxes[..., :2] > length).all(-1)
