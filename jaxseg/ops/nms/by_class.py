"""Exact greedy NMS within each class, and then the best boxes of all classes.

A box is suppressed by better boxes of its class only. So all classes together can be gone through
from the best score down, and what stays is found in the order of the scores: the search ends when
there are as many boxes as wanted, mostly within the first block of candidates.
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

# The number of boxes that a kernel settles at once, those that are kept already included: mostly
# enough for all detections of an image.
KERNEL_ROWS = 1024


class _Candidates(NamedTuple):
    """Pairs of a box and a class, with scores that are -inf where a pair does not take part.

    Either each box has a score for every class, or it has a label and the score of that class only.
    """

    boxes: Float32[Array, "*b R C 4"] | Float32[Array, "*b R 4"]
    scores: Float32[Array, "*b R C"] | Float32[Array, "*b R"]
    labels: Int32[Array, "*b R"] | None


class _Block(NamedTuple):
    """Boxes, the best first, with their classes and whether they may stay."""

    boxes: Float32[Array, "*b n 4"]
    classes: Int32[Array, "*b n"]
    free: Bool[Array, "*b n"]


# Says which boxes of the second block stay after those of the first one, which are kept; both are of
# a batch.
Stays = Callable[[_Block, _Block], Bool[Array, "b n"]]


class _Search(NamedTuple):
    """How far the search is.

    Attributes:
        remaining: the scores of the candidates that have not been looked at, -inf for the others.
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
    """Exact greedy NMS of every class, then the best boxes of all classes.

    Of equal scores the first row is better, and in a row the first class.

    Args:
        boxes: `x1, y1, x2, y2`, a box for each class or one for all classes.
        scores: the score of each class.
        score_threshold: only candidates with a larger score take part.
        iou_threshold: a box goes when it overlaps a kept one of its class by more than this.
        max_detections: the number of rows of the answer.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark does.
        suppress_equal: whether a box goes at exactly the threshold, too, as in compiled routines
            for CPUs.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: the implementation does not exist, or cannot run here or give so many
            detections.
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
    """`class_nms` of boxes that have one class each, as RetinaNet's pairs of an anchor and a class.

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
    """The detections of a batch.

    Args:
        candidates: the candidates of a batch.
        stays: says which boxes of a block stay.
        rows: the number of candidates that are looked at in one turn.
        max_detections: the number of rows of the answer.
    """

    def turn(search: _Search) -> _Search:
        remaining, found = jax.vmap(partial(_next_candidates, count=rows))(candidates, search.remaining)
        blocks = (jax.vmap(_block)(candidates, boxes) for boxes in (search.kept, found))
        return _Search(remaining, jax.vmap(_append)(search.kept, found, stays(*blocks)))

    # Another turn does not change an image that has all it can have.
    start = jax.vmap(partial(_start, max_detections=max_detections))(candidates)
    return jax.lax.while_loop(lambda search: jax.vmap(_is_unfinished)(search).any(), turn, start).kept


def _stays(rule: Rule, kept: _Block, block: _Block) -> Bool[Array, "n"]:
    """Which boxes of one image's block stay."""
    suppresses = rule.suppresses(kept.boxes, block.boxes) & (kept.classes[:, None] == block.classes)
    free = block.free & ~(kept.free[:, None] & suppresses).any(0)
    return settle(free, rule.suppresses(block.boxes, block.boxes) & (block.classes[:, None] == block.classes))


def _stays_in_kernel(rule: Rule, kept: _Block, block: _Block) -> Bool[Array, "b n"]:
    """Which boxes of a batch's blocks stay."""
    from jaxseg.ops.kernels.nms import greedy_kept

    # What is kept already is better than all of the block, and stays again.
    boxes, classes, free = (jnp.concatenate(pair, 1) for pair in zip(kept, block, strict=True))
    return greedy_kept(boxes, rule.areas(boxes), free, classes, rule=rule)[:, kept.free.shape[1] :]


def _start(candidates: _Candidates, max_detections: int) -> _Search:
    none = jnp.zeros(max_detections, jnp.int32)
    return _Search(candidates.scores.reshape(-1), Kept(none, none, jnp.zeros(none.shape), jnp.zeros(none.shape, bool)))


def _is_unfinished(search: _Search) -> Bool[Array, ""]:
    return ~search.kept.valid.all() & (search.remaining > -jnp.inf).any()


def _next_candidates(candidates: _Candidates, remaining: Float32[Array, "n"], count: int) -> tuple[Float32[Array, "n"], Kept]:
    """What remains without the next candidates, and these, up to `count` of them."""
    scores, order = jax.lax.top_k(remaining, min(count, remaining.size))
    if candidates.labels is None:
        rows, classes = jnp.divmod(order, candidates.scores.shape[1])
    else:
        rows, classes = order, candidates.labels[order]
    found = Kept(rows.astype(jnp.int32), classes.astype(jnp.int32), scores, scores > -jnp.inf)
    return remaining.at[order].set(-jnp.inf), found


def _block(candidates: _Candidates, found: Kept) -> _Block:
    """Boxes that were found, to be compared."""
    of_classes = candidates.boxes.ndim == 3
    boxes = candidates.boxes[found.indices, found.classes] if of_classes else candidates.boxes[found.indices]
    return _Block(boxes, found.classes, found.valid)


def _append(kept: Kept, found: Kept, stays: Bool[Array, "n"]) -> Kept:
    """What is kept, with the boxes that stay behind it."""
    rows = len(kept.valid)
    # Boxes that go have no place, and those that no row is left for drop out.
    place = jnp.where(stays, kept.valid.sum() + jnp.cumsum(stays) - 1, rows)
    return Kept(*(old.at[place].set(new, mode="drop") for old, new in zip(kept, found, strict=True)))
