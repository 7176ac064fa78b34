"""Exact greedy NMS within each class, and then the best boxes of all classes.

A box is suppressed only by better boxes of its class. So the candidates of all classes can be
processed together in descending order of scores, and boxes are kept in this order. The search ends
as soon as there are enough boxes, usually within the first block of candidates.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.implementation import Implementation
from jaxseg.ops.nms.batching import dispatch_images
from jaxseg.ops.nms.kept import Kept
from jaxseg.ops.nms.suppression import BLOCK_SIZE, Rule, settle, too_many_boxes
from jaxseg.structures import AnyArray

# The number of boxes that a kernel decides on at once, with those that are already kept. It usually
# suffices for all detections of an image.
KERNEL_ROWS = 1024


class _Candidates(NamedTuple):
    """Pairs of a box and a class, with scores that are -inf for pairs that are not candidates.

    Each box has either a score for every class, or a label and only the score of that class.
    """

    boxes: Float32[Array, "*b R C 4"] | Float32[Array, "*b R 4"]
    scores: Float32[Array, "*b R C"] | Float32[Array, "*b R"]
    labels: Int32[Array, "*b R"] | None


class _Block(NamedTuple):
    """Boxes in descending order of scores, with their classes, and which of them can be kept."""

    boxes: Float32[Array, "*b n 4"]
    classes: Int32[Array, "*b n"]
    free: Bool[Array, "*b n"]


# A function of two blocks of a batch. It returns which boxes of the second block are kept after
# those of the first block, which have been kept.
Stays = Callable[[_Block, _Block], Bool[Array, "b n"]]


class _Search(NamedTuple):
    """The state of the search.

    Attributes:
        remaining: the scores of the candidates that remain, and -inf for the others.
        kept: the boxes that are kept so far.
    """

    remaining: Float32[Array, "*b n"]
    kept: Kept


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
    """Applies exact greedy NMS to every class, and selects the best boxes of all classes.

    If scores are equal, the first row is better, and the first class within a row.

    Args:
        boxes: `x1, y1, x2, y2`, a box for each class or one for all classes.
        scores: the score of each class.
        score_threshold: candidates with this score or a lower one are dropped.
        iou_threshold: a box is dropped if its IoU with a kept box of its class is larger.
        max_detections: the number of rows of the result.
        pixel_offset: 1 if boxes end in their last pixel, as in maskrcnn-benchmark.
        suppress_equal: whether a box is also dropped if the IoU equals the threshold, as in
            compiled routines for CPUs.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: the implementation does not exist, cannot run in this process, or does
            not support so many detections.
    """
    rule = Rule(iou_threshold, suppress_equal, pixel_offset)
    candidates = _Candidates(jnp.asarray(boxes), jnp.where(scores > score_threshold, scores, -jnp.inf), None)
    return _best_of_classes(rule, candidates, max_detections, implementation)


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
    """Does the same as `class_nms` for boxes with one class each, such as RetinaNet's candidates.

    Args:
        boxes: `x1, y1, x2, y2`.
        scores: the score of each box in its class.
        labels: the class of each box.
        score_threshold: see `class_nms`.
        iou_threshold: see `class_nms`.
        max_detections: see `class_nms`.
        pixel_offset: see `class_nms`.
        suppress_equal: see `class_nms`.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: see `class_nms`.
    """
    rule = Rule(iou_threshold, suppress_equal, pixel_offset)
    candidates = _Candidates(jnp.asarray(boxes), jnp.where(scores > score_threshold, scores, -jnp.inf), labels)
    return _best_of_classes(rule, candidates, max_detections, implementation)


def _best_of_classes(rule: Rule, candidates: _Candidates, max_detections: int, implementation: Implementation | None) -> Kept:
    kernel_rows = max(BLOCK_SIZE, KERNEL_ROWS - max_detections)
    search = partial(_search, max_detections=max_detections)
    return dispatch_images(
        implementation,
        candidates,
        kernel=partial(search, stays=partial(_stays_in_kernel, rule), rows=kernel_rows),
        plain=partial(search, stays=jax.vmap(partial(_stays, rule)), rows=BLOCK_SIZE),
        obstacle=too_many_boxes(max_detections + kernel_rows),
    )


def _search(candidates: _Candidates, *, stays: Stays, rows: int, max_detections: int) -> Kept:
    """Finds the detections of a batch.

    Args:
        candidates: the candidates of a batch.
        stays: the function that returns which boxes of a block are kept.
        rows: the number of candidates that are processed in one iteration.
        max_detections: the number of rows of the result.
    """

    def turn(search: _Search) -> _Search:
        remaining, found = jax.vmap(partial(_next_candidates, count=rows))(candidates, search.remaining)
        blocks = (jax.vmap(_block)(candidates, boxes) for boxes in (search.kept, found))
        return _Search(remaining, jax.vmap(_append)(search.kept, found, stays(*blocks)))

    # Further iterations do not change an image that has all its detections.
    start = jax.vmap(partial(_start, max_detections=max_detections))(candidates)
    return jax.lax.while_loop(lambda search: jax.vmap(_is_unfinished)(search).any(), turn, start).kept


def _stays(rule: Rule, kept: _Block, block: _Block) -> Bool[Array, "n"]:
    """Returns which boxes of one image's block are kept."""
    suppresses = rule.suppresses(kept.boxes, block.boxes) & (kept.classes[:, None] == block.classes)
    free = block.free & ~(kept.free[:, None] & suppresses).any(0)
    return settle(free, rule.suppresses(block.boxes, block.boxes) & (block.classes[:, None] == block.classes))


def _stays_in_kernel(rule: Rule, kept: _Block, block: _Block) -> Bool[Array, "b n"]:
    """Returns which boxes of a batch's blocks are kept."""
    from jaxseg.ops.kernels.nms import greedy_kept

    # Boxes that are already kept are better than all of the block, so they are kept again.
    boxes, classes, free = (jnp.concatenate(pair, 1) for pair in zip(kept, block, strict=True))
    return greedy_kept(boxes, rule.areas(boxes), free, classes, rule=rule)[:, kept.free.shape[1] :]


def _start(candidates: _Candidates, max_detections: int) -> _Search:
    none = jnp.zeros(max_detections, jnp.int32)
    return _Search(candidates.scores.reshape(-1), Kept(none, none, jnp.zeros(none.shape), jnp.zeros(none.shape, bool)))


def _is_unfinished(search: _Search) -> Bool[Array, ""]:
    return ~search.kept.valid.all() & (search.remaining > -jnp.inf).any()


def _next_candidates(candidates: _Candidates, remaining: Float32[Array, "n"], count: int) -> tuple[Float32[Array, "n"], Kept]:
    """Returns the remaining scores without the next candidates, and up to `count` of these."""
    scores, order = jax.lax.top_k(remaining, min(count, remaining.size))
    if candidates.labels is None:
        rows, classes = jnp.divmod(order, candidates.scores.shape[1])
    else:
        rows, classes = order, candidates.labels[order]
    found = Kept(rows.astype(jnp.int32), classes.astype(jnp.int32), scores, scores > -jnp.inf)
    return remaining.at[order].set(-jnp.inf), found


def _block(candidates: _Candidates, found: Kept) -> _Block:
    """Returns the boxes of the found candidates for the comparison."""
    of_classes = candidates.boxes.ndim == 3
    boxes = candidates.boxes[found.indices, found.classes] if of_classes else candidates.boxes[found.indices]
    return _Block(boxes, found.classes, found.valid)


def _append(kept: Kept, found: Kept, stays: Bool[Array, "n"]) -> Kept:
    """Appends the boxes that stay to those that are already kept."""
    rows = len(kept.valid)
    # Suppressed boxes have no position, and boxes beyond the last row are dropped.
    place = jnp.where(stays, kept.valid.sum() + jnp.cumsum(stays) - 1, rows)
    return Kept(*(old.at[place].set(new, mode="drop") for old, new in zip(kept, found, strict=True)))
