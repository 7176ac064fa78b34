"""Boxes: areas, overlaps, and the coding against anchors. Any unit, as long as all boxes share it."""

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxseg.structures import AnyArray

Boxes = Float32[AnyArray, "*n 4"]


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


def _rounded(product: Float32[AnyArray, "*n"]) -> Float32[AnyArray, "*n"]:
    """The product as it is, kept by a select from melting into the next sum as one instruction with one rounding.

    The originals round each product. Many priors overlap an object equally, up to that rounding, and it decides
    which of them matching gives to the object.
    """
    return jnp.where(jnp.isnan(product), jnp.nan, product)


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
    intersection = _rounded(pairwise_intersection(a, b, offset))
    area_a, area_b = _rounded(box_area(a, offset)), _rounded(box_area(b, offset))
    union = area_a[..., :, None] + area_b[..., None, :] - intersection
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
