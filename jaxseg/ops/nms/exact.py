"""Exact greedy NMS of a list of boxes, such as the proposals of one level of a pyramid."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.implementation import Implementation
from jaxseg.ops.nms.batching import dispatch_images
from jaxseg.ops.nms.suppression import BLOCK_SIZE, Rule, settle, too_many_boxes
from jaxseg.structures import AnyArray

# A list has at most this many blocks; of longer lists, the blocks are larger.
MAX_BLOCKS = 8


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
    """Which boxes stay when each one goes that overlaps a better one which stays.

    Of two boxes with the same score, the first one is better.

    Args:
        boxes: `x1, y1, x2, y2` in any unit.
        scores: the larger a score, the better is its box.
        valid: the boxes that take part; the others do not stay.
        iou_threshold: a box goes when it overlaps a kept one by more than this.
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark does.
        suppress_equal: whether a box goes at exactly the threshold, too, as in compiled routines
            for CPUs.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: the implementation does not exist, or cannot run here or take so many
            boxes.
    """
    rule = Rule(iou_threshold, suppress_equal, pixel_offset)
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    keep = dispatch_images(
        implementation,
        jnp.asarray(boxes)[order],
        jnp.asarray(valid)[order],
        kernel=partial(_keep_in_kernel, rule),
        plain=jax.vmap(partial(_keep_by_blocks, rule)),
        obstacle=too_many_boxes(scores.shape[0]),
    )
    return jnp.zeros(scores.shape[0], bool).at[order].set(keep)


def _keep_by_blocks(rule: Rule, boxes: Float32[Array, "k 4"], candidates: Bool[Array, "k"]) -> Bool[Array, "k"]:
    """Which candidates stay, the best first.

    Boxes go block by block: those that stay of the blocks before suppress a whole block at once,
    then the boxes of the block settle among themselves.
    """
    count = len(candidates)
    size = max(BLOCK_SIZE, -(-count // MAX_BLOCKS))
    keep = jnp.zeros(0, bool)
    for start in range(0, count, size):
        earlier, block = boxes[:start], boxes[start : start + size]
        free = candidates[start : start + size] & ~(keep[:, None] & rule.suppresses(earlier, block)).any(0)
        keep = jnp.concatenate([keep, settle(free, rule.suppresses(block, block))])
    return keep


def _keep_in_kernel(rule: Rule, boxes: Float32[Array, "b k 4"], candidates: Bool[Array, "b k"]) -> Bool[Array, "b k"]:
    from jaxseg.ops.kernels.nms import greedy_kept

    return greedy_kept(boxes, rule.areas(boxes), candidates, rule=rule)
