"""Non-maximum suppression of one image, in fixed shapes.

`implementation` names how overlaps are compared, see `ops.implementation`; the results are the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.boxes import box_area, pairwise_iou, rounded
from jaxseg.ops.implementation import Implementation, dispatch
from jaxseg.ops.kernels import nms as kernels
from jaxseg.structures import AnyArray


class Kept(NamedTuple):
    """What survives, best score first: rows of the input, classes, scores, and which of the `D` rows count."""

    indices: Int32[Array, "D"]
    classes: Int32[Array, "D"]
    scores: Float32[Array, "D"]
    valid: Bool[Array, "D"]


def _for_images(function: Callable[..., Array], *operands: Array) -> Array:
    """`function`, which takes operands with any number of leading axes, of one image.

    Under `jax.vmap`, nested ones, too, it is called once for all, with their axes in front: a kernel runs once.
    """

    @jax.custom_batching.custom_vmap
    def together(*operands: Array) -> Array:
        return function(*operands)

    @together.def_vmap
    def add_axis(size: int, batched: Sequence[bool], *operands: Array) -> tuple[Array, bool]:
        return together(*(x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(operands, batched, strict=True))), True

    return together(*(x[None] for x in operands))[0]


def _unsuppressed(boxes: Float32[Array, "*c k 4"], iou_threshold: float, implementation: Implementation | None) -> Bool[Array, "*c k"]:
    """Fast NMS's rule on boxes in score order: no box before it overlaps it by more than the threshold.

    Suppressed boxes suppress, too. Of two boxes without area the second goes, as the original's NaN overlap decides.
    """

    def plain(boxes: Float32[Array, "*c k 4"]) -> Bool[Array, "*c k"]:
        overlaps = pairwise_iou(boxes, boxes, empty=jnp.inf)
        earlier = jnp.triu(jnp.ones(overlaps.shape[-2:], bool), 1)
        return ~((overlaps > iou_threshold) & earlier).any(-2)

    def kernel(boxes: Float32[Array, "*c k 4"]) -> Bool[Array, "*c k"]:
        return ~kernels.fast_suppressed(boxes, rounded(box_area(boxes)), kernels.Rule(iou_threshold, empty=jnp.inf))

    return _for_images(partial(dispatch, implementation, kernel=kernel, plain=plain), boxes)


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
    """Fast NMS (YOLACT, section 3.3): each class on its own, then the best of all classes.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: foreground probabilities. No threshold on them: one candidate can be kept in many classes.
        candidates: rows that take part.
        iou_threshold: a box goes when it overlaps a better one of its class by more.
        top_k: boxes a class considers.
        max_detections: rows of the answer.
        implementation: see the module.
    """
    boxes, top_k = jnp.asarray(boxes), min(top_k, boxes.shape[0])
    class_scores, indices = jax.lax.top_k(jnp.where(candidates, scores, -1.0), top_k)
    keep = _unsuppressed(boxes[indices], iou_threshold, implementation) & (class_scores > -1.0)
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
    implementation: Implementation | None = None,
) -> Kept:
    """Fast NMS over all classes at once, each box with its best class; keeps up to `top_k`, as the original."""
    boxes, rows, top_k = jnp.asarray(boxes), top_k, min(top_k, boxes.shape[0])
    best, indices = jax.lax.top_k(jnp.where(candidates, scores.max(0), -1.0), top_k)
    keep = _unsuppressed(boxes[indices], iou_threshold, implementation) & (best > -1.0)
    # Kept rows to the front, still in score order.
    order = jnp.argsort(~keep, stable=True)
    indices = indices[order].astype(jnp.int32)
    kept = Kept(indices, scores[:, indices].argmax(0).astype(jnp.int32), jnp.where(keep, best, -1.0)[order], keep[order])
    return _pad(kept, rows)


# Boxes that greedy suppression settles at once. Smaller blocks compute less on CPUs, larger ones are fewer steps for accelerators and
# smaller programs; past `MAX_BLOCKS` of them, blocks grow with the input.
BLOCK_SIZE, MAX_BLOCKS = 512, 8


class _Rule(NamedTuple):
    """When a kept box suppresses a later one."""

    iou_threshold: float
    pixel_offset: float
    suppress_equal: bool

    def suppresses(self, a: Float32[Array, "n 4"], b: Float32[Array, "m 4"]) -> Bool[Array, "n m"]:
        overlaps = pairwise_iou(a, b, offset=self.pixel_offset)
        return overlaps >= self.iou_threshold if self.suppress_equal else overlaps > self.iou_threshold


def _greedy(candidates: Bool[Array, "k"], suppresses: Bool[Array, "k k"]) -> Bool[Array, "k"]:
    """Which of the candidates, best first, stay when each goes that an earlier one which stays suppresses.

    Repeats "stay unless one that stays suppresses you", starting from all. After n turns the first n answers are
    final, and once nothing changes all of them are: as many turns as the longest chain of suppressions, mostly few.
    """
    suppresses = jnp.triu(suppresses, 1)

    def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep = candidates & ~(state[0][:, None] & suppresses).any(0)
        return keep, (keep != state[0]).any()

    return jax.lax.while_loop(lambda state: state[1], turn, (candidates, jnp.array(True)))[0]


def exact_nms(
    boxes: Float32[AnyArray, "k 4"],
    scores: Float32[Array, "k"],
    valid: Bool[AnyArray, "k"],
    *,
    iou_threshold: float,
    pixel_offset: float = 0.0,
    suppress_equal: bool = False,
) -> Bool[Array, "k"]:
    """Exact greedy NMS: a box stays unless it overlaps a better one that stays; of equal scores the first is better.

    Boxes go block by block in order of their scores: those that stayed in the blocks before suppress a whole block
    at once, then the block settles among itself.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: the larger, the better.
        valid: rows that take part; the others do not stay.
        iou_threshold: a box goes when it overlaps a kept one by more.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark.
        suppress_equal: a box goes at exactly the threshold, too, as compiled CPU routines have it.
    """
    rule, valid = _Rule(iou_threshold, pixel_offset, suppress_equal), jnp.asarray(valid)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    boxes, candidates = jnp.asarray(boxes)[order], valid[order]
    count = scores.shape[0]
    size = max(BLOCK_SIZE, -(-count // MAX_BLOCKS))
    keep = jnp.zeros(0, bool)
    for start in range(0, count, size):
        block, earlier = boxes[start : start + size], boxes[:start]
        free = candidates[start : start + size] & ~(keep[:, None] & rule.suppresses(earlier, block)).any(0)
        keep = jnp.concatenate([keep, _greedy(free, rule.suppresses(block, block))])
    return jnp.zeros(count, bool).at[order].set(keep)


def class_nms(
    boxes: Float32[AnyArray, "R C 4"] | Float32[AnyArray, "R 4"],
    scores: Float32[Array, "R C"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    pixel_offset: float = 0.0,
    suppress_equal: bool = False,
) -> Kept:
    """Exact greedy NMS of every class, then the best of all classes.

    A box is suppressed by better boxes of its class only, so all classes together can be taken from the best score
    down, and what stays comes out in order: `max_detections` of them are all we need, mostly from the first block.
    Of equal scores the first row is better, and in a row the first class.

    Args:
        boxes: `x1, y1, x2, y2`, of each class or of all classes.
        scores: of each class.
        score_threshold: only larger scores take part.
        iou_threshold: a box goes when it overlaps a kept one of its class by more.
        max_detections: rows of the answer.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark.
        suppress_equal: a box goes at exactly the threshold, too, as compiled CPU routines have it.
    """
    boxes = jnp.asarray(boxes)

    def find(order: Int32[Array, "n"]) -> tuple[Int32[Array, "n"], Int32[Array, "n"]]:
        rows, labels = jnp.divmod(order, scores.shape[1])
        return rows.astype(jnp.int32), labels.astype(jnp.int32)

    return _best_of_classes(
        scores.reshape(-1),
        find,
        lambda rows, labels: boxes[rows] if boxes.ndim == 2 else boxes[rows, labels],
        _Rule(iou_threshold, pixel_offset, suppress_equal),
        score_threshold,
        max_detections,
    )


def labelled_nms(
    boxes: Float32[AnyArray, "R 4"],
    scores: Float32[Array, "R"],
    labels: Int32[Array, "R"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    pixel_offset: float = 0.0,
    suppress_equal: bool = False,
) -> Kept:
    """`class_nms` of boxes that have one class each, such as RetinaNet's best pairs of an anchor and a class.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: of each box as its class.
        labels: the class of each box.
        score_threshold: see `class_nms`, as the others.
        iou_threshold: see there.
        max_detections: see there.
        pixel_offset: see there.
        suppress_equal: see there.
    """
    boxes = jnp.asarray(boxes)
    return _best_of_classes(
        scores,
        lambda order: (order.astype(jnp.int32), labels[order]),
        lambda rows, _: boxes[rows],
        _Rule(iou_threshold, pixel_offset, suppress_equal),
        score_threshold,
        max_detections,
    )


def _best_of_classes(
    scores: Float32[Array, "n"],
    find: Callable[[Array], tuple[Array, Array]],
    boxes_of: Callable[[Array, Array], Array],
    rule: _Rule,
    score_threshold: float,
    max_detections: int,
) -> Kept:
    """Block by block from the best score down, until there are enough.

    Args:
        scores: of all candidates.
        find: a candidate's row and its class.
        boxes_of: the box of a row and a class.
        rule: see `_Rule`.
        score_threshold: only larger scores take part.
        max_detections: rows of the answer.
    """
    size = min(BLOCK_SIZE, scores.size)

    def block(state: tuple[Array, Kept]) -> tuple[Array, Kept]:
        remaining, kept = state
        best, order = jax.lax.top_k(remaining, size)
        rows, labels = find(order)
        candidates = boxes_of(rows, labels)
        suppressed = rule.suppresses(boxes_of(kept.indices, kept.classes), candidates) & (kept.classes[:, None] == labels)
        free = (best > -jnp.inf) & ~(kept.valid[:, None] & suppressed).any(0)
        keep = _greedy(free, rule.suppresses(candidates, candidates) & (labels[:, None] == labels))
        # Behind what is kept already; past the last row they drop out.
        place = jnp.where(keep, kept.valid.sum() + jnp.cumsum(keep) - 1, max_detections)
        kept = Kept(*(x.at[place].set(new, mode="drop") for x, new in zip(kept, (rows, labels, best, keep), strict=True)))
        return remaining.at[order].set(-jnp.inf), kept

    def unfinished(state: tuple[Array, Kept]) -> Bool[Array, ""]:
        remaining, kept = state
        return ~kept.valid.all() & (remaining > -jnp.inf).any()

    none = jnp.zeros(max_detections, jnp.int32)
    start = Kept(none, none, jnp.zeros(max_detections), jnp.zeros(max_detections, bool))
    return jax.lax.while_loop(unfinished, block, (jnp.where(scores > score_threshold, scores, -jnp.inf), start))[1]


def _pad(kept: Kept, rows: int) -> Kept:
    """Zeros where nothing was kept, and zero rows behind, so that the answer always has `rows` rows."""
    indices, classes, scores, valid = (jnp.pad(x, (0, rows - x.shape[0])) for x in kept)
    return Kept(jnp.where(valid, indices, 0), jnp.where(valid, classes, 0), jnp.where(valid, scores, 0.0), valid)
