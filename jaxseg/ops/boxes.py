"""Boxes: areas, overlaps, and the coding against anchors. Any unit, as long as all boxes share it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.structures import AnyArray

Boxes = Float32[AnyArray, "*n 4"]
# Height and width of a picture: known numbers, or data.
Size = Sequence[int | float] | Int32[AnyArray, "2"] | Float32[AnyArray, "2"]
Weights = tuple[float, float, float, float]


def centers_to_corners(boxes: Boxes) -> Float32[Array, "*n 4"]:
    """`cx, cy, w, h` to `x1, y1, x2, y2`."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate([center - size / 2, center + size / 2], -1)


def box_area(boxes: Boxes, offset: float = 0.0) -> Float32[AnyArray, "*n"]:
    """Width times height; `offset` = 1 counts pixels inclusively, as older code bases do."""
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def pairwise_intersection(a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"], offset: float = 0.0) -> Float32[Array, "*b n m"]:
    """Area that each of `a` shares with each of `b`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    size = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]) + offset
    size = jnp.maximum(size, 0.0)
    return size[..., 0] * size[..., 1]


def rounded(product: Float32[AnyArray, "*n"]) -> Float32[AnyArray, "*n"]:
    """The product as it is, kept by a select from melting into the next sum as one instruction with one rounding.

    The originals round each product. Many priors overlap an object equally, up to that rounding, and it decides
    which of them matching gives to the object.
    """
    return jnp.where(jnp.isnan(product), jnp.nan, product)


def quotient_reaches(a: Float32[AnyArray, "*n"], b: Float32[AnyArray, "*n"], least: np.float32) -> Bool[AnyArray, "*n"]:
    """Whether a / b, rounded to float32, is at least `least`; for a >= 0 and b > 0.

    Accelerators approximate quotients to one or two units of their last place, and overlaps of boxes on whole pixels often lie
    exactly at a threshold. So this asks for the sign of a - m b, where m lies halfway between `least` and the float below it: no
    quotient of two floats does. The factors are cut into halves of 12 bits, whose products have no rounding; where the sign is in
    doubt, their differences have none either. Below 2^-100 products would lose bits.
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
    """The first 12 of a float's 24 bits."""
    if isinstance(x, np.float32):
        return (x.view(np.int32) & np.int32(-4096)).view(np.float32)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -4096, jnp.float32)


def intersection_and_union(
    a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"], offset: float = 0.0
) -> tuple[Float32[AnyArray, "*b n m"], Float32[AnyArray, "*b n m"]]:
    """Areas that each of `a` shares with each of `b`, and that they cover together; `offset` = 1 counts pixels inclusively."""
    intersection = rounded(pairwise_intersection(a, b, offset))
    area_a, area_b = rounded(box_area(a, offset)), rounded(box_area(b, offset))
    return intersection, area_a[..., :, None] + area_b[..., None, :] - intersection


def pairwise_iou(
    a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"], *, offset: float = 0.0, empty: float = 0.0
) -> Float32[Array, "*b n m"]:
    """Intersection over union of each of `a` with each of `b`.

    Args:
        a: boxes `x1, y1, x2, y2`.
        b: boxes `x1, y1, x2, y2`.
        offset: 1 counts pixels inclusively.
        empty: the answer for two boxes without any area, where the quotient is undefined.
    """
    intersection, union = intersection_and_union(a, b, offset)
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1.0), empty)


def pairwise_coverage(a: Float32[AnyArray, "*b n 4"], b: Float32[AnyArray, "*b m 4"]) -> Float32[Array, "*b n m"]:
    """Part of each of `a` that lies in each of `b`: intersection over the area of `a`. The measure for crowd regions."""
    area = box_area(a)[..., :, None]
    return jnp.where(area > 0, pairwise_intersection(a, b) / jnp.where(area > 0, area, 1.0), 0.0)


# SSD's variances (arXiv:1512.02325), which YOLACT inherits.
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def encode_boxes(boxes: Boxes, anchors: Boxes) -> Float32[Array, "*n 4"]:
    """Offsets that turn anchors (`cx, cy, w, h`) into boxes (`x1, y1, x2, y2`); boxes need a positive size."""
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = boxes[..., 2:] - boxes[..., :2]
    return jnp.concatenate(
        [
            (center - anchors[..., :2]) / (CENTER_VARIANCE * anchors[..., 2:]),
            jnp.log(size / anchors[..., 2:]) / SIZE_VARIANCE,
        ],
        -1,
    )


def decode_boxes(deltas: Boxes, anchors: Boxes) -> Float32[Array, "*n 4"]:
    """The inverse of `encode_boxes`; not clipped to the image, as the original."""
    center = anchors[..., :2] + deltas[..., :2] * CENTER_VARIANCE * anchors[..., 2:]
    size = anchors[..., 2:] * jnp.exp(deltas[..., 2:] * SIZE_VARIANCE)
    low = center - size / 2
    return jnp.concatenate([low, low + size], -1)


def clip_boxes(boxes: Boxes, size: Size, *, pixel_offset: float = 0.0) -> Float32[Array, "*n 4"]:
    """Boxes cut at the picture's border: x to 0 .. width - `pixel_offset`, y to 0 .. height - `pixel_offset`.

    Args:
        boxes: `x1, y1, x2, y2` in pixels.
        size: height and width of the picture, numbers or an array of two.
        pixel_offset: 1 where x2 and y2 name the last pixel, as in maskrcnn-benchmark.
    """
    height, width = size
    limit = jnp.stack([jnp.asarray(width), jnp.asarray(height)] * 2).astype(jnp.float32) - pixel_offset
    return jnp.clip(boxes, 0.0, limit)


def longer_than(boxes: Boxes, length: float) -> Bool[Array, "*n"]:
    """Boxes both of whose sides are longer than `length`."""
    boxes = jnp.asarray(boxes)
    return (boxes[..., 2:] - boxes[..., :2] > length).all(-1)


# R-CNN's bound on log(size / anchor size): a box grows to at most 1000 / 16 of its anchor.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)
# Of the deltas between a region and its object; RetinaNet's anchors have the same.
DELTA_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)


def encode_deltas(
    boxes: Float32[AnyArray, "*#n 4"],
    anchors: Float32[AnyArray, "*#n 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    pixel_offset: float = 0.0,
) -> Float32[Array, "*n 4"]:
    """R-CNN's `dx, dy, dw, dh` (arXiv:1311.2524, appendix C) that turn anchors into boxes, times `weights`.

    Without a positive size on either side the answer is of no use, but finite, so that a mask can remove it.

    Args:
        boxes: `x1, y1, x2, y2`.
        anchors: `x1, y1, x2, y2`, or proposals.
        weights: factors of the four deltas.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark.
    """
    center, size = _center_and_size(boxes, pixel_offset)
    anchor_center, anchor_size = _center_and_size(anchors, pixel_offset)
    size, anchor_size = (jnp.where(x > 0, x, 1.0) for x in (size, anchor_size))
    return jnp.concatenate([(center - anchor_center) / anchor_size, jnp.log(size / anchor_size)], -1) * jnp.array(weights, jnp.float32)


def decode_deltas(
    deltas: Float32[AnyArray, "*#n 4"],
    anchors: Float32[AnyArray, "*#n 4"],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
    pixel_offset: float = 0.0,
    clamp_both_sides: bool = False,
) -> Float32[Array, "*n 4"]:
    """The inverse of `encode_deltas`, not clipped to the picture; dw and dh count up to `MAX_LOG_SCALE`.

    Args:
        deltas: `dx, dy, dw, dh`; `[R, C, 4]` with anchors `[R, 1, 4]` decodes boxes of several classes.
        anchors: `x1, y1, x2, y2`, or proposals.
        weights: what `encode_deltas` multiplied by.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark.
        clamp_both_sides: bound dw and dh from below, too, as mmdetection.
    """
    center, size = _center_and_size(anchors, pixel_offset)
    deltas = deltas / jnp.array(weights, jnp.float32)
    log_scale = jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)
    if clamp_both_sides:
        log_scale = jnp.maximum(log_scale, -MAX_LOG_SCALE)
    center = center + deltas[..., :2] * size
    half = size * jnp.exp(log_scale) / 2
    return jnp.concatenate([center - half, center + half - pixel_offset], -1)


def _center_and_size(boxes: Boxes, pixel_offset: float) -> tuple[Float32[Array, "*n 2"], Float32[Array, "*n 2"]]:
    boxes = jnp.asarray(boxes)
    size = boxes[..., 2:] - boxes[..., :2] + pixel_offset
    return boxes[..., :2] + size / 2, size
