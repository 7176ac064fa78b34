"""Fast NMS (arXiv:1904.02689, section 3.3), where suppressed boxes still suppress others."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.implementation import Implementation
from jaxseg.ops.nms.batching import dispatch_images
from jaxseg.ops.nms.kept import Kept
from jaxseg.ops.nms.suppression import Rule
from jaxseg.structures import AnyArray


def fast_nms(
    boxes: Float32[AnyArray, "A 4"],
    scores: Float32[Array, "C A"],
    candidates: Bool[Array, "A"],
    *,
    iou_threshold: float,
    top_k: int,
    max_detections: int,
    implementation: Implementation | None = None,
) -> Kept:
    """Applies Fast NMS to each class, and selects the best boxes of all classes.

    No threshold applies to the scores, so a candidate can be kept in many classes.

    Args:
        boxes: `x1, y1, x2, y2` in any unit.
        scores: the probability of each class without the background, for each box.
        candidates: which boxes are used.
        iou_threshold: a box is dropped if its IoU with a better box of its class is larger.
        top_k: the number of boxes of each class that are compared.
        max_detections: the number of rows of the result.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: the implementation does not exist or cannot run in this process.
    """
    boxes, top_k = jnp.asarray(boxes), min(top_k, boxes.shape[0])
    class_scores, indices = jax.lax.top_k(jnp.where(candidates, scores, -1.0), top_k)
    keep = _unsuppressed(boxes[indices], iou_threshold, implementation) & (class_scores > -1.0)
    kept_scores, order = jax.lax.top_k(jnp.where(keep, class_scores, -1.0).reshape(-1), min(max_detections, keep.size))
    indices, classes = indices.reshape(-1)[order].astype(jnp.int32), (order // top_k).astype(jnp.int32)
    return Kept(indices, classes, kept_scores, kept_scores > -1.0).padded(max_detections)


def cross_class_fast_nms(
    boxes: Float32[AnyArray, "A 4"],
    scores: Float32[Array, "C A"],
    candidates: Bool[Array, "A"],
    *,
    iou_threshold: float,
    top_k: int,
    implementation: Implementation | None = None,
) -> Kept:
    """Applies Fast NMS to all classes at once, where each box has its best class.

    Args:
        boxes: see `fast_nms`.
        scores: see `fast_nms`.
        candidates: see `fast_nms`.
        iou_threshold: a box is dropped if its IoU with a better box of any class is larger.
        top_k: the number of boxes that are compared, and of rows of the result.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: the implementation does not exist or cannot run in this process.
    """
    boxes, rows, top_k = jnp.asarray(boxes), top_k, min(top_k, boxes.shape[0])
    best, indices = jax.lax.top_k(jnp.where(candidates, scores.max(0), -1.0), top_k)
    keep = _unsuppressed(boxes[indices], iou_threshold, implementation) & (best > -1.0)
    # The kept boxes are moved to the front, in the order of their scores.
    order = jnp.argsort(~keep, stable=True)
    indices = indices[order].astype(jnp.int32)
    classes = scores[:, indices].argmax(0).astype(jnp.int32)
    return Kept(indices, classes, jnp.where(keep, best, -1.0)[order], keep[order]).padded(rows)


def _unsuppressed(boxes: Float32[Array, "*c k 4"], iou_threshold: float, implementation: Implementation | None) -> Bool[Array, "*c k"]:
    """Returns which boxes overlap no earlier box of their list by more than the threshold."""
    # If two boxes have no area, the second one is dropped, because their IoU is NaN in the
    # original, and NaN suppresses.
    rule = Rule(iou_threshold, empty=math.inf)
    return dispatch_images(implementation, boxes, kernel=partial(_compare_in_kernel, rule), plain=partial(_compare_all, rule))


def _compare_all(rule: Rule, boxes: Float32[Array, "*c k 4"]) -> Bool[Array, "*c k"]:
    earlier = jnp.triu(jnp.ones((boxes.shape[-2],) * 2, bool), 1)
    return ~(rule.suppresses(boxes, boxes) & earlier).any(-2)


def _compare_in_kernel(rule: Rule, boxes: Float32[Array, "*c k 4"]) -> Bool[Array, "*c k"]:
    from jaxseg.ops.kernels.nms import fast_suppressed

    return ~fast_suppressed(boxes, rule.areas(boxes), rule)
