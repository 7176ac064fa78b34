"""Exact greedy NMS of a list of boxes, such as the proposals of one level of a pyramid."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.implementation import Implementation
from jaxseg.ops.nms.batching import dispatch_images
from jaxseg.ops.nms.suppression import BLOCK_SIZE, Rule, settle, too_many_boxes
from jaxseg.structures import AnyArray

# A list has at most this many blocks; longer lists have larger blocks.
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
    """Returns which boxes are kept if a box is dropped that overlaps a better kept box.

    If two boxes have the same score, the first one is better.

    Args:
        boxes: `x1, y1, x2, y2` in any unit.
        scores: the scores; boxes with larger scores are better.
        valid: which boxes are used; the others are not kept.
        iou_threshold: a box is dropped if its IoU with a kept box is larger.
        pixel_offset: 1 if boxes end in their last pixel, as in maskrcnn-benchmark.
        suppress_equal: whether a box is also dropped if the IoU equals the threshold, as in
            compiled routines for CPUs.
        implementation: see `jaxseg.ops.implementation`.

    Raises:
        ImplementationError: the implementation does not exist, cannot run in this process, or does
            not support so many boxes.
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
    """Returns which candidates are kept; the boxes are in descending order of scores.

    Blocks are processed in order: first the kept boxes of earlier blocks suppress boxes of the
    whole block at once, and then the boxes of the block suppress each other.
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
