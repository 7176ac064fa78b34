"""Non-maximum suppression of one image, in fixed shapes.

`implementation` names how overlaps are compared, see `ops.implementation`; the results are the same.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.boxes import box_area, intersection_and_union, quotient_reaches, rounded
from jaxseg.ops.implementation import Implementation, dispatch
from jaxseg.ops.kernels import nms as kernels
from jaxseg.ops.kernels.nms import Rule
from jaxseg.structures import AnyArray


class Kept(NamedTuple):
    """What survives, best score first: rows of the input, classes, scores, and which of the `D` rows count."""

    indices: Int32[Array, "D"]
    classes: Int32[Array, "D"]
    scores: Float32[Array, "D"]
    valid: Bool[Array, "D"]


def _for_all_images(function: Callable[..., Any], *operands: Array) -> Any:
    """Of one image, what `function` answers for images with any number of leading axes.

    Under `jax.vmap`, nested ones, too, it is called once with all images, the outermost axis first: a kernel runs once.
    """

    @jax.custom_batching.custom_vmap
    def together(*operands: Array) -> Any:
        return function(*operands)

    @together.def_vmap
    def add_axis(size: int, batched: Sequence[bool], *operands: Array) -> tuple[Any, Any]:
        answer = together(*(x if own else jnp.broadcast_to(x, (size, *x.shape)) for x, own in zip(operands, batched, strict=True)))
        return answer, jax.tree.map(lambda _: True, answer)

    return jax.tree.map(lambda x: x[0], together(*(x[None] for x in operands)))


def _in_one_axis(function: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """`function` of a batch, for images with any number of leading axes; its first operand has `rank` axes of its own."""

    def of_all(*operands: Array) -> Any:
        leading = operands[0].shape[: operands[0].ndim - rank]
        answer = function(*(x.reshape(math.prod(leading), *x.shape[len(leading) :]) for x in operands))
        return jax.tree.map(lambda x: x.reshape(*leading, *x.shape[1:]), answer)

    return of_all


def _map(function: Callable[..., Any], *operands: Any) -> Any:
    """`jax.vmap`, but one image goes without its axis: CPUs are a little faster so."""
    if len(jax.tree.leaves(operands)[0]) != 1:
        return jax.vmap(function)(*operands)
    return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], operands)))


def _suppresses(rule: Rule, a: Float32[Array, "*b n 4"], b: Float32[Array, "*b m 4"]) -> Bool[Array, "*b n m"]:
    """Which of `a` suppress which of `b`."""

    def divided(intersection: Array, union: Array) -> Array:
        return intersection / jnp.where(union > 0, union, 1.0) >= rule.least_iou

    intersection, union = intersection_and_union(a, b, rule.pixel_offset)
    # CPUs divide exactly, and in less time.
    reaches = jax.lax.platform_dependent(intersection, union, cpu=divided, default=partial(quotient_reaches, least=rule.least_iou))
    return jnp.where(union > 0, reaches, bool(rule.empty >= rule.least_iou))


def _areas(rule: Rule, boxes: Float32[Array, "*b n 4"]) -> Float32[Array, "*b n"]:
    """As `intersection_and_union` has them."""
    return jnp.asarray(rounded(box_area(boxes, rule.pixel_offset)))


def _unsuppressed(boxes: Float32[Array, "*c k 4"], iou_threshold: float, implementation: Implementation | None) -> Bool[Array, "*c k"]:
    """Fast NMS's rule on boxes in score order: no box before it overlaps it by more than the threshold.

    Suppressed boxes suppress, too. Of two boxes without area the second goes, as the original's NaN overlap decides.
    """
    rule = Rule(iou_threshold, empty=math.inf)

    def plain(boxes: Float32[Array, "*c k 4"]) -> Bool[Array, "*c k"]:
        earlier = jnp.triu(jnp.ones((boxes.shape[-2],) * 2, bool), 1)
        return ~(_suppresses(rule, boxes, boxes) & earlier).any(-2)

    def kernel(boxes: Float32[Array, "*c k 4"]) -> Bool[Array, "*c k"]:
        return ~kernels.fast_suppressed(boxes, _areas(rule, boxes), rule)

    return _for_all_images(partial(dispatch, implementation, kernel=kernel, plain=plain), boxes)


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
# Boxes that a kernel settles at once where the best of all classes are wanted: mostly enough for all detections of an image.
KERNEL_ROWS = 1024


class _Block(NamedTuple):
    """Boxes, their classes, and which of them count."""

    boxes: Float32[Array, "n 4"]
    classes: Int32[Array, "n"]
    free: Bool[Array, "n"]


def _kept_by_kernel(
    rule: Rule, boxes: Float32[Array, "*b n 4"], candidates: Bool[Array, "*b n"], *labels: Int32[Array, "*b n"]
) -> Bool[Array, "*b n"]:
    """Which candidates stay, best first in each list; with labels, within each of them."""
    return kernels.greedy_kept(boxes, _areas(rule, boxes), candidates, *labels, rule=rule)


def _obstacle(count: int) -> str | None:
    if count > kernels.MOST_BOXES:
        return f"{count} boxes of one list, and {kernels.MOST_BOXES} are the most"
    return None


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
    implementation: Implementation | None = None,
) -> Bool[Array, "k"]:
    """Exact greedy NMS: a box stays unless it overlaps a better one that stays; of equal scores the first is better.

    Boxes go block by block in order of their scores: those that stayed in the blocks before suppress a whole block
    at once, then the block settles among itself. Kernels do so, too.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: the larger, the better.
        valid: rows that take part; the others do not stay.
        iou_threshold: a box goes when it overlaps a kept one by more.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark.
        suppress_equal: a box goes at exactly the threshold, too, as compiled CPU routines have it.
        implementation: see the module.
    """
    rule, valid = Rule(iou_threshold, suppress_equal, pixel_offset), jnp.asarray(valid)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    count = scores.shape[0]

    def plain(boxes: Float32[Array, "k 4"], candidates: Bool[Array, "k"]) -> Bool[Array, "k"]:
        size = max(BLOCK_SIZE, -(-count // MAX_BLOCKS))
        keep = jnp.zeros(0, bool)
        for start in range(0, count, size):
            block, earlier = boxes[start : start + size], boxes[:start]
            free = candidates[start : start + size] & ~(keep[:, None] & _suppresses(rule, earlier, block)).any(0)
            keep = jnp.concatenate([keep, _greedy(free, _suppresses(rule, block, block))])
        return keep

    kernel = partial(_kept_by_kernel, rule)
    run = partial(dispatch, implementation, kernel=kernel, plain=_in_one_axis(partial(_map, plain), 2), obstacle=_obstacle(count))
    return jnp.zeros(count, bool).at[order].set(_for_all_images(run, jnp.asarray(boxes)[order], valid[order]))


def class_nms(
    boxes: Float32[AnyArray, "R C 4"] | Float32[AnyArray, "R 4"],
    scores: Float32[Array, "R C"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    pixel_offset: float = 0.0,
    suppress_equal: bool = False,
    implementation: Implementation | None = None,
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
        implementation: see the module.
    """
    rule = Rule(iou_threshold, suppress_equal, pixel_offset)
    return _best_of_classes(rule, score_threshold, max_detections, implementation, jnp.asarray(boxes), scores)


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
    implementation: Implementation | None = None,
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
        implementation: see the module.
    """
    rule = Rule(iou_threshold, suppress_equal, pixel_offset)
    return _best_of_classes(rule, score_threshold, max_detections, implementation, jnp.asarray(boxes), scores, labels)


def _best_of_classes(
    rule: Rule, score_threshold: float, max_detections: int, implementation: Implementation | None, *operands: Array
) -> Kept:
    """Block by block from the best score down, until there are enough.

    Args:
        rule: see `kernels.nms.Rule`.
        score_threshold: only larger scores take part.
        max_detections: rows of the answer.
        implementation: see the module.
        operands: boxes and scores, as `class_nms` has them, or boxes, scores and labels, as `labelled_nms`.
    """

    def best(stay: Callable[[_Block, _Block], Bool[Array, "n"]], size: int, *operands: Array) -> Kept:
        def turn(state: tuple[Array, Kept], boxes: Array, scores: Array, labels: Array | None = None) -> tuple[Array, Kept]:
            remaining, kept = state
            values, order = jax.lax.top_k(remaining, min(size, scores.size))
            rows, classes = jnp.divmod(order, scores.shape[1]) if labels is None else (order, labels[order])
            found = Kept(rows.astype(jnp.int32), classes.astype(jnp.int32), values, values > -jnp.inf)
            before, block = (
                _Block(boxes[x.indices, x.classes] if boxes.ndim == 3 else boxes[x.indices], x.classes, x.valid) for x in (kept, found)
            )
            keep = stay(before, block)
            # Behind what is kept already; past the last row they drop out.
            place = jnp.where(keep, kept.valid.sum() + jnp.cumsum(keep) - 1, max_detections)
            kept = Kept(*(x.at[place].set(new, mode="drop") for x, new in zip(kept, found, strict=True)))
            return remaining.at[order].set(-jnp.inf), kept

        def unfinished(state: tuple[Array, Kept]) -> Bool[Array, ""]:
            remaining, kept = state
            return (~kept.valid.all(1) & (remaining > -jnp.inf).any(1)).any()

        batch, scores = len(operands[1]), operands[1]
        none = jnp.zeros((batch, max_detections), jnp.int32)
        start = Kept(none, none, jnp.zeros(none.shape), jnp.zeros(none.shape, bool))
        candidates = jnp.where(scores > score_threshold, scores, -jnp.inf).reshape(batch, -1)
        # Another turn does not change an image that has all it can have.
        return jax.lax.while_loop(unfinished, lambda state: _map(turn, state, *operands), (candidates, start))[1]

    def plain(kept: _Block, block: _Block) -> Bool[Array, "n"]:
        suppressed = _suppresses(rule, kept.boxes, block.boxes) & (kept.classes[:, None] == block.classes)
        free = block.free & ~(kept.free[:, None] & suppressed).any(0)
        return _greedy(free, _suppresses(rule, block.boxes, block.boxes) & (block.classes[:, None] == block.classes))

    def kernel(kept: _Block, block: _Block) -> Bool[Array, "n"]:
        # What is kept stays again.
        boxes, classes, free = (jnp.concatenate(pair) for pair in zip(kept, block, strict=True))
        return _for_all_images(partial(_kept_by_kernel, rule), boxes, free, classes)[max_detections:]

    size = max(BLOCK_SIZE, KERNEL_ROWS - max_detections)
    run = partial(
        dispatch,
        implementation,
        kernel=_in_one_axis(partial(best, kernel, size), operands[0].ndim),
        plain=_in_one_axis(partial(best, plain, BLOCK_SIZE), operands[0].ndim),
        obstacle=_obstacle(max_detections + size),
    )
    return _for_all_images(run, *operands)


def _pad(kept: Kept, rows: int) -> Kept:
    """Zeros where nothing was kept, and zero rows behind, so that the answer always has `rows` rows."""
    indices, classes, scores, valid = (jnp.pad(x, (0, rows - x.shape[0])) for x in kept)
    return Kept(jnp.where(valid, indices, 0), jnp.where(valid, classes, 0), jnp.where(valid, scores, 0.0), valid)
