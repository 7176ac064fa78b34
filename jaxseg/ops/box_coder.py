"""Box coders, which convert between boxes and the deltas that a network predicts for anchors."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxseg.ops.boxes import Boxes
from jaxseg.structures import AnyArray

# R-CNN's limit for log(size / size of the anchor): a box is at most 1000 / 16 times its anchor.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)
# The weights of the deltas between a region and its object, and of those of RetinaNet's anchors.
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# SSD's variances (arXiv:1512.02325), which YOLACT inherits.
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


@dataclasses.dataclass(frozen=True)
class BoxCoder:
    """R-CNN's deltas `dx, dy, dw, dh` between anchors and boxes (arXiv:1311.2524, appendix C).

    Proposals can take the place of anchors.

    Attributes:
        weights: the factors of the four deltas.
        pixel_offset: 1 if boxes end in their last pixel, as in maskrcnn-benchmark.
        clamp_both_sides: whether decoding also limits dw and dh from below, as mmdetection does.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    pixel_offset: float = 0.0
    clamp_both_sides: bool = False

    def encode(self, boxes: Float32[AnyArray, "*#n 4"], anchors: Float32[AnyArray, "*#n 4"]) -> Float32[Array, "*n 4"]:
        """Computes the deltas from anchors to boxes.

        If the size of a box or an anchor is not positive, the result is meaningless but finite, so
        that a mask can remove it.

        Args:
            boxes: `x1, y1, x2, y2`.
            anchors: `x1, y1, x2, y2`.
        """
        center, size = self._center_and_size(boxes)
        anchor_center, anchor_size = self._center_and_size(anchors)
        size, anchor_size = (jnp.where(x > 0, x, 1.0) for x in (size, anchor_size))
        deltas = jnp.concatenate([(center - anchor_center) / anchor_size, jnp.log(size / anchor_size)], -1)
        return deltas * jnp.array(self.weights, jnp.float32)

    def decode(self, deltas: Float32[AnyArray, "*#n 4"], anchors: Float32[AnyArray, "*#n 4"]) -> Float32[Array, "*n 4"]:
        """Applies deltas to anchors, and returns the boxes.

        They are not clipped; dw and dh are limited to `MAX_LOG_SCALE`.

        Args:
            deltas: `dx, dy, dw, dh`. Deltas `[R, C, 4]` with anchors `[R, 1, 4]` give boxes of C
                classes.
            anchors: `x1, y1, x2, y2`.
        """
        center, size = self._center_and_size(anchors)
        deltas = deltas / jnp.array(self.weights, jnp.float32)
        log_scale = jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)
        if self.clamp_both_sides:
            log_scale = jnp.maximum(log_scale, -MAX_LOG_SCALE)
        center = center + deltas[..., :2] * size
        half = size * jnp.exp(log_scale) / 2
        return jnp.concatenate([center - half, center + half - self.pixel_offset], -1)

    def _center_and_size(self, boxes: Boxes) -> tuple[Float32[Array, "*n 2"], Float32[Array, "*n 2"]]:
        boxes = jnp.asarray(boxes)
        size = boxes[..., 2:] - boxes[..., :2] + self.pixel_offset
        return boxes[..., :2] + size / 2, size


def ssd_encode(boxes: Boxes, priors: Boxes) -> Float32[Array, "*n 4"]:
    """Computes SSD's deltas from priors to boxes.

    Args:
        boxes: `x1, y1, x2, y2`, with a positive size.
        priors: `cx, cy, w, h`.
    """
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = boxes[..., 2:] - boxes[..., :2]
    offset = (center - priors[..., :2]) / (CENTER_VARIANCE * priors[..., 2:])
    return jnp.concatenate([offset, jnp.log(size / priors[..., 2:]) / SIZE_VARIANCE], -1)


def ssd_decode(deltas: Boxes, priors: Boxes) -> Float32[Array, "*n 4"]:
    """Applies SSD's deltas to priors, and returns the boxes without clipping, as in YOLACT.

    Args:
        deltas: see `ssd_encode`.
        priors: `cx, cy, w, h`.

    Returns:
        `x1, y1, x2, y2`.
    """
    center = priors[..., :2] + deltas[..., :2] * CENTER_VARIANCE * priors[..., 2:]
    size = priors[..., 2:] * jnp.exp(deltas[..., 2:] * SIZE_VARIANCE)
    low = center - size / 2
    return jnp.concatenate([low, low + size], -1)
