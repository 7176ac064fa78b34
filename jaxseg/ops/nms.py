"""Non-maximum suppression of one image, in fixed shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.boxes import pairwise_iou
from jaxseg.structures import AnyArray


class Kept(NamedTuple):
    """What survives, best score first: rows of the input, classes, scores, and which of the `D` rows count."""

    indices: Int32[Array, "D"]
    classes: Int32[Array, "D"]
    scores: Float32[Array, "D"]
    valid: Bool[Array, "D"]


def _unsuppressed(boxes: Float32[Array, "*c k 4"], iou_threshold: float) -> Bool[Array, "*c k"]:
    """Fast NMS's rule on boxes in score order: no box before it overlaps it by more than the threshold.

    Suppressed boxes suppress, too. Of two boxes without area the second goes, as the original's NaN overlap decides.
    """
    overlaps = pairwise_iou(boxes, boxes, empty=jnp.inf)
    earlier = jnp.triu(jnp.ones(overlaps.shape[-2:], bool), 1)
    return ~((overlaps > iou_threshold) & earlier).any(-2)


def fast_nms(
    boxes: Float32[AnyArray, "A 4"],
    scores: Float32[Array, "C A"],
    candidates: Bool[Array, "A"],
    *,
    iou_threshold: float,
    top_k: int,
    max_detections: int,
) -> Kept:
    """Fast NMS (YOLACT, section 3.3): each class on its own, then the best of all classes.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: foreground probabilities. No threshold on them: one candidate can be kept in many classes.
        candidates: rows that take part.
        iou_threshold: a box goes when it overlaps a better one of its class by more.
        top_k: boxes a class considers.
        max_detections: rows of the answer.
    """
    boxes, top_k = jnp.asarray(boxes), min(top_k, boxes.shape[0])
    class_scores, indices = jax.lax.top_k(jnp.where(candidates, scores, -1.0), top_k)
    keep = _unsuppressed(boxes[indices], iou_threshold) & (class_scores > -1.0)
    kept_scores, order = jax.lax.top_k(jnp.where(keep, class_scores, -1.0).reshape(-1), min(max_detections, keep.size))
    return _pad(
        Kept(indices.reshape(-1)[order].astype(jnp.int32), (order // top_k).astype(jnp.int32), kept_scores, kept_scores > -1.0),
        max_detections,
    )


def cross_class_fast_nms(
    boxes: Float32[AnyArray, "A 4"],
    scores: Float32[Array, "C A"],
    candidates: Bool[Array, "A"],
    *,
    iou_threshold: float,
    top_k: int,
) -> Kept:
    """Fast NMS over all classes at once, each box with its best class; keeps up to `top_k`, as the original."""
    boxes, rows, top_k = jnp.asarray(boxes), top_k, min(top_k, boxes.shape[0])
    best, indices = jax.lax.top_k(jnp.where(candidates, scores.max(0), -1.0), top_k)
    keep = _unsuppressed(boxes[indices], iou_threshold) & (best > -1.0)
    # Kept rows to the front, still in score order.
    order = jnp.argsort(~keep, stable=True)
    indices = indices[order].astype(jnp.int32)
    kept = Kept(indices, scores[:, indices].argmax(0).astype(jnp.int32), jnp.where(keep, best, -1.0)[order], keep[order])
    return _pad(kept, rows)


def greedy_nms(
    boxes: Float32[AnyArray, "A 4"],
    scores: Float32[Array, "C A"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    offset: float = 0.0,
    suppress_equal: bool = False,
) -> Kept:
    """Exact greedy NMS of every class, then the best of all classes.

    Taking the best score of all classes, one detection a turn, is the same as each class on its own followed by a
    common ranking, and it ends after `max_detections` turns.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: of each class.
        score_threshold: only larger scores take part.
        iou_threshold: a box goes when it overlaps a kept one of its class by more.
        max_detections: rows of the answer.
        offset: 1 counts pixels inclusively (boxes in pixels then), as the original's compiled routine.
        suppress_equal: a box goes at exactly the threshold, too.
    """

    boxes = jnp.asarray(boxes)

    def turn(remaining: Float32[Array, "C A"], _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        best = remaining.argmax()
        label, index = jnp.divmod(best, boxes.shape[0])
        score = remaining[label, index]
        overlaps = pairwise_iou(boxes[index][None], boxes, offset=offset)[0]
        gone = (overlaps >= iou_threshold) if suppress_equal else (overlaps > iou_threshold)
        gone = gone.at[index].set(True)
        remaining = remaining.at[label].set(jnp.where(gone, -1.0, remaining[label]))
        return remaining, (index.astype(jnp.int32), label.astype(jnp.int32), score)

    start = jnp.where(scores > score_threshold, scores, -1.0)
    _, (indices, classes, kept_scores) = jax.lax.scan(turn, start, None, length=max_detections)
    valid = kept_scores > -1.0
    return Kept(indices, classes, jnp.where(valid, kept_scores, 0.0), valid)


def _pad(kept: Kept, rows: int) -> Kept:
    """Zeros where nothing was kept, and zero rows behind, so that the answer always has `rows` rows."""
    indices, classes, scores, valid = (jnp.pad(x, (0, rows - x.shape[0])) for x in kept)
    return Kept(jnp.where(valid, indices, 0), jnp.where(valid, classes, 0), jnp.where(valid, scores, 0.0), valid)
