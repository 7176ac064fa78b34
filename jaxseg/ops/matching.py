"""Matchers: which prior, anchor or proposal learns which object of the ground truth."""

import dataclasses
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
    """The matches of one image's anchors.

    Attributes:
        labels: values of `Match`.
        indices: the row of the object that a positive anchor learns. Of YOLACT's priors, the others
            have the object that they overlap most.
    """

    labels: Int32[Array, "A"]
    indices: Int32[Array, "A"]


# Which objects choose anchors of their own, see `Matcher`.
Forced = Literal["none", "own_argmax", "best_anchor"]


@dataclasses.dataclass(frozen=True)
class Matcher:
    """Faster R-CNN's matching of the anchors of one image (arXiv:1506.01497, section 3.1.2).

    Proposals of a second stage are matched in the same way.

    An anchor is positive when it overlaps its best object (the first of equals) by `positive_iou`
    or more, negative when it does by less than `negative_iou`, and ignored between the two. Objects
    choose anchors of their own by the rule `forced`:

    - "none": they do not choose (second stages).
    - "own_argmax": an anchor that overlaps some object as well as any anchor does is positive,
      however little that is, and learns its own best object (maskrcnn-benchmark, detectron2,
      torchvision).
    - "best_anchor": an anchor that overlaps an object as well as any anchor does, and by
      `forced_min_iou` or more, learns this object even if it overlaps another one more. Where
      several objects want an anchor, it learns the last of them (mmdetection).

    Attributes:
        positive_iou: see above.
        negative_iou: see above.
        forced: see above.
        forced_min_iou: see "best_anchor".
        pixel_offset: 1 counts pixels inclusively, as maskrcnn-benchmark does.
    """

    positive_iou: float
    negative_iou: float
    forced: Forced = "none"
    forced_min_iou: float = 0.0
    pixel_offset: float = 0.0

    def __call__(
        self,
        anchors: Float32[AnyArray, "A 4"],
        boxes: Float32[AnyArray, "N 4"],
        valid: Bool[AnyArray, "N"],
        candidates: Bool[AnyArray, "A"] | None = None,
    ) -> Matches:
        """The matches of one image.

        Args:
            anchors: `x1, y1, x2, y2`.
            boxes: ground truth `x1, y1, x2, y2`, with rows of padding.
            valid: the rows of `boxes` that hold objects. Without any, all anchors are negative.
            candidates: the anchors that take part; the others are ignored, and no object chooses
                them. Without this argument all anchors take part.
        """
        anchors, boxes = jnp.asarray(anchors), jnp.asarray(boxes)
        count = anchors.shape[0]
        candidates = jnp.ones(count, bool) if candidates is None else jnp.asarray(candidates)

        # One object at a time: memory is a few rows of `A` numbers, however many objects there are.
        def look_at(state: tuple[Array, Array, Array], row: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
            best, indices, chosen = state
            index, box, exists = row
            overlaps = jnp.where(exists & candidates, pairwise_iou(box[None], anchors, offset=self.pixel_offset)[0], -1.0)
            better = overlaps > best
            most = overlaps.max()
            chooses = exists if self.forced == "own_argmax" else exists & (most >= self.forced_min_iou)
            chosen = jnp.where(chooses & candidates & (overlaps == most), index, chosen)
            return (jnp.where(better, overlaps, best), jnp.where(better, index, indices), chosen), None

        start = (jnp.full(count, -1.0), jnp.zeros(count, jnp.int32), jnp.full(count, -1, jnp.int32))
        rows = (jnp.arange(boxes.shape[0], dtype=jnp.int32), boxes, jnp.asarray(valid))
        (best, indices, chosen), _ = jax.lax.scan(look_at, start, rows)
        labels = _labels(best, self.positive_iou, self.negative_iou)
        if self.forced != "none":
            labels = jnp.where(chosen >= 0, Match.POSITIVE, labels)
        if self.forced == "best_anchor":
            indices = jnp.where(chosen >= 0, chosen, indices)
        return Matches(jnp.where(candidates, labels, Match.IGNORE).astype(jnp.int32), indices)


@dataclasses.dataclass(frozen=True)
class PriorMatcher:
    """YOLACT's matching of the priors of one image: SSD's rule with forced matches and crowds.

    A prior is positive when it overlaps its best object by `positive_iou` or more, negative when it
    does by less than `negative_iou`, and ignored between the two. Every object gets one prior of
    its own in any case; objects with a larger best overlap choose first. A negative prior that lies
    in a crowd region by more than `crowd_overlap` of its area is ignored.

    Attributes:
        positive_iou: see above.
        negative_iou: see above.
        crowd_overlap: see above.
    """

    positive_iou: float
    negative_iou: float
    crowd_overlap: float

    def __call__(
        self,
        priors: Float32[AnyArray, "A 4"],
        boxes: Float32[AnyArray, "N 4"],
        ordinary: Bool[AnyArray, "N"],
        crowd: Bool[AnyArray, "N"],
    ) -> Matches:
        """The matches of one image.

        Args:
            priors: `x1, y1, x2, y2`.
            boxes: ground truth `x1, y1, x2, y2`, with rows of padding.
            ordinary: the rows of `boxes` that hold ordinary objects.
            crowd: the rows of `boxes` that hold crowd regions.
        """
        overlaps = jnp.where(ordinary[:, None], pairwise_iou(boxes, priors), -1.0)
        best_overlap, indices = overlaps.max(0), overlaps.argmax(0).astype(jnp.int32)
        forced = _forced_matches(overlaps, ordinary)
        is_forced = forced >= 0
        labels = _labels(jnp.where(is_forced, 2.0, best_overlap), self.positive_iou, self.negative_iou)
        in_crowd = (jnp.where(crowd[None, :], pairwise_coverage(priors, boxes), 0.0) > self.crowd_overlap).any(1)
        labels = jnp.where((labels == Match.NEGATIVE) & in_crowd, Match.IGNORE, labels)
        return Matches(labels, jnp.where(is_forced, forced, indices))


def _labels(overlaps: Float32[Array, "A"], positive_iou: float, negative_iou: float) -> Int32[Array, "A"]:
    """What anchors are that overlap their best objects so much."""
    ignored_or_negative = jnp.where(overlaps >= negative_iou, Match.IGNORE, Match.NEGATIVE)
    return jnp.where(overlaps >= positive_iou, Match.POSITIVE, ignored_or_negative).astype(jnp.int32)


def _forced_matches(overlaps: Float32[Array, "N A"], ordinary: Bool[AnyArray, "N"]) -> Int32[Array, "A"]:
    """The object that each prior must learn, -1 for none.

    The object with the largest overlap of all takes the prior of that overlap, both leave, and so
    on. The best overlap of an object with the priors that are left can only fall, so the last one
    that was found is an upper bound. A row is searched again only when it comes first with a prior
    that is taken, which is rare: the loop has about as many turns as there are objects.
    """
    prior_count = overlaps.shape[1]

    def is_waiting(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        return (state[0] > -1.0).any()

    def serve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        bound, choice, owner = state
        first = bound.argmax()
        prior = choice[first]
        free = owner[prior] < 0
        owner = owner.at[prior].set(jnp.where(free, first.astype(jnp.int32), owner[prior]))
        remaining = jnp.where(owner < 0, overlaps[first], -1.0)
        # An object that is served has left; another one turns to its best prior among those that
        # are left.
        bound = bound.at[first].set(jnp.where(free, -2.0, remaining.max()))
        choice = choice.at[first].set(remaining.argmax().astype(jnp.int32))
        return bound, choice, owner

    bound = jnp.where(ordinary, overlaps.max(1), -2.0)
    choice = overlaps.argmax(1).astype(jnp.int32)
    return jax.lax.while_loop(is_waiting, serve, (bound, choice, jnp.full(prior_count, -1, jnp.int32)))[2]
