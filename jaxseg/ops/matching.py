"""Which prior, anchor or proposal learns which object."""

import enum
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.boxes import pairwise_coverage, pairwise_iou
from jaxseg.structures import AnyArray


class Match(enum.IntEnum):
    """What a prior, anchor or proposal is to its object."""

    IGNORE = -1
    NEGATIVE = 0
    POSITIVE = 1


class Matches(NamedTuple):
    """`labels` are of `Match`; `indices` name the ground truth of a positive (of all priors: the best overlap's)."""

    labels: Int32[Array, "A"]
    indices: Int32[Array, "A"]


def match_priors(
    priors: Float32[AnyArray, "A 4"],
    boxes: Float32[AnyArray, "N 4"],
    ordinary: Bool[AnyArray, "N"],
    crowd: Bool[AnyArray, "N"],
    *,
    positive_iou: float,
    negative_iou: float,
    crowd_overlap: float,
) -> Matches:
    """YOLACT's matching (SSD's rule with forced matches and crowds) for one image.

    A prior is positive at IoU >= `positive_iou` with its best object, negative under `negative_iou`, ignored between.
    Every object gets one prior of its own in any case, objects with the larger best IoU choosing first. A prior that
    is not positive and lies in a crowd region by more than `crowd_overlap` of its area is ignored.

    Args:
        priors: `x1, y1, x2, y2`.
        boxes: ground truth `x1, y1, x2, y2`, padded.
        ordinary: rows of `boxes` that hold ordinary objects.
        crowd: rows of `boxes` that hold crowd regions.
        positive_iou: see above.
        negative_iou: see above.
        crowd_overlap: see above.
    """
    overlaps = jnp.where(ordinary[:, None], pairwise_iou(boxes, priors), -1.0)
    best_overlap, indices = overlaps.max(0), overlaps.argmax(0).astype(jnp.int32)
    forced = _forced_matches(overlaps, ordinary)
    is_forced = forced >= 0
    best_overlap = jnp.where(is_forced, 2.0, best_overlap)
    indices = jnp.where(is_forced, forced, indices)

    labels = jnp.where(
        best_overlap >= positive_iou, Match.POSITIVE, jnp.where(best_overlap >= negative_iou, Match.IGNORE, Match.NEGATIVE)
    ).astype(jnp.int32)
    in_crowd = (jnp.where(crowd[None, :], pairwise_coverage(priors, boxes), 0.0) > crowd_overlap).any(1)
    labels = jnp.where((labels == Match.NEGATIVE) & in_crowd, Match.IGNORE, labels)
    return Matches(labels, indices)


def _forced_matches(overlaps: Float32[Array, "N A"], ordinary: Bool[AnyArray, "N"]) -> Int32[Array, "A"]:
    """The object each prior must serve, -1 for none.

    The object with the globally largest overlap takes its prior, both leave the game, and so on. Overlaps of an
    object only ever fall, so its last known best is an upper bound: a row is searched again only when it comes first
    with a prior that is gone, which is rare, and the loop is about as long as there are objects.
    """
    prior_count = overlaps.shape[1]

    def waiting(state: tuple) -> Bool[Array, ""]:
        return (state[0] > -1.0).any()

    def serve(state: tuple) -> tuple:
        bound, choice, owner = state
        first = bound.argmax()
        prior = choice[first]
        free = owner[prior] < 0
        owner = owner.at[prior].set(jnp.where(free, first.astype(jnp.int32), owner[prior]))
        remaining = jnp.where(owner < 0, overlaps[first], -1.0)
        # Served: out of the game. Else: its best among the priors that are left.
        bound = bound.at[first].set(jnp.where(free, -2.0, remaining.max()))
        choice = choice.at[first].set(remaining.argmax().astype(jnp.int32))
        return bound, choice, owner

    bound = jnp.where(ordinary, overlaps.max(1), -2.0)
    choice = overlaps.argmax(1).astype(jnp.int32)
    return jax.lax.while_loop(waiting, serve, (bound, choice, jnp.full(prior_count, -1, jnp.int32)))[2]


def match_anchors(
    anchors: Float32[AnyArray, "A 4"],
    boxes: Float32[AnyArray, "N 4"],
    valid: Bool[AnyArray, "N"],
    *,
    positive_iou: float,
    negative_iou: float,
    forced: Literal["none", "own_argmax", "best_anchor"],
    forced_min_iou: float = 0.0,
    pixel_offset: float = 0.0,
    candidates: Bool[AnyArray, "A"] | None = None,
) -> Matches:
    """Faster R-CNN's matching (arXiv:1506.01497, section 3.1.2) of one image's anchors or proposals.

    An anchor is positive at IoU >= `positive_iou` with its best object (the first of equals), negative under
    `negative_iou`, ignored between. Objects choose anchors of their own by the rule `forced`:

    - "none": they do not (second stages).
    - "own_argmax": every anchor that overlaps some object as well as any anchor does is positive, however little that
      is; it learns its own best object (maskrcnn-benchmark, detectron2, torchvision).
    - "best_anchor": every anchor that overlaps an object as well as any anchor does, by `forced_min_iou` at least,
      learns this object, even if it overlaps another one more; the last such object (mmdetection).

    One object is looked at a time, so memory is a few rows of `A` numbers, however many objects there are.

    Args:
        anchors: `x1, y1, x2, y2`.
        boxes: ground truth `x1, y1, x2, y2`, padded.
        valid: rows of `boxes` that hold objects; without any, all anchors are negative.
        positive_iou: see above.
        negative_iou: see above.
        forced: see above.
        forced_min_iou: see "best_anchor".
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark.
        candidates: anchors that take part; the others are ignored, and no object chooses them. All, if not given.
    """
    anchors, boxes = jnp.asarray(anchors), jnp.asarray(boxes)
    candidates = jnp.ones(anchors.shape[0], bool) if candidates is None else candidates

    def look_at(state: tuple[Array, Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
        best, indices, chosen = state
        index, box, exists = row
        overlaps = jnp.where(exists & candidates, pairwise_iou(box[None], anchors, offset=pixel_offset)[0], -1.0)
        better = overlaps > best
        most = overlaps.max()
        chooses = exists if forced == "own_argmax" else exists & (most >= forced_min_iou)
        chosen = jnp.where(chooses & candidates & (overlaps == most), index, chosen)
        return (jnp.where(better, overlaps, best), jnp.where(better, index, indices), chosen), None

    count = anchors.shape[0]
    start = (jnp.full(count, -1.0), jnp.zeros(count, jnp.int32), jnp.full(count, -1, jnp.int32))
    rows = (jnp.arange(boxes.shape[0], dtype=jnp.int32), boxes, jnp.asarray(valid))
    (best, indices, chosen), _ = jax.lax.scan(look_at, start, rows)
    labels = jnp.where(best >= positive_iou, Match.POSITIVE, jnp.where(best >= negative_iou, Match.IGNORE, Match.NEGATIVE))
    if forced != "none":
        labels = jnp.where(chosen >= 0, Match.POSITIVE, labels)
    if forced == "best_anchor":
        indices = jnp.where(chosen >= 0, chosen, indices)
    return Matches(jnp.where(candidates, labels, Match.IGNORE).astype(jnp.int32), indices)
