"""Matchers, which assign objects of the ground truth to priors, anchors or proposals."""

import dataclasses
import enum
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.boxes import pairwise_coverage, pairwise_iou
from jaxseg.structures import AnyArray


class Match(enum.IntEnum):
    """The label of a prior, an anchor or a proposal."""

    IGNORE = -1
    NEGATIVE = 0
    POSITIVE = 1


class Matches(NamedTuple):
    """The matches of one image's anchors.

    Attributes:
        labels: values of `Match`.
        indices: the row of the object that a positive anchor learns. YOLACT's other priors have the
            object with the largest IoU.
    """

    labels: Int32[Array, "A"]
    indices: Int32[Array, "A"]


# The rule of forced matches, see `Matcher`.
Forced = Literal["none", "own_argmax", "best_anchor"]


@dataclasses.dataclass(frozen=True)
class Matcher:
    """Faster R-CNN's matching of the anchors of one image (arXiv:1506.01497, section 3.1.2).

    Proposals of a second stage are matched in the same way.

    The best object of an anchor is the one with the largest IoU, and the first one if several IoUs
    are equal. An anchor is positive if this IoU is at least `positive_iou`, negative if it is less
    than `negative_iou`, and ignored otherwise. The rule `forced` adds further matches:

    - "none": there are none (second stages).
    - "own_argmax": an anchor that has the largest IoU of all anchors with some object is positive,
      however small this IoU is, and learns its own best object (maskrcnn-benchmark, detectron2,
      torchvision).
    - "best_anchor": an anchor that has the largest IoU of all anchors with an object learns this
      object if the IoU is at least `forced_min_iou`, even if its IoU with another object is larger.
      If this holds for several objects, the anchor learns the last of them (mmdetection).

    Attributes:
        positive_iou: see above.
        negative_iou: see above.
        forced: see above.
        forced_min_iou: see "best_anchor".
        pixel_offset: 1 if boxes end in their last pixel, as in maskrcnn-benchmark.
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
        """Matches the anchors of one image.

        Args:
            anchors: `x1, y1, x2, y2`.
            boxes: ground truth `x1, y1, x2, y2`, with rows of padding.
            valid: which rows of `boxes` hold objects. If none does, all anchors are negative.
            candidates: which anchors are used; the others are ignored, also in forced matches. None
                uses all anchors.
        """
        anchors, boxes = jnp.asarray(anchors), jnp.asarray(boxes)
        count = anchors.shape[0]
        candidates = jnp.ones(count, bool) if candidates is None else jnp.asarray(candidates)

        # Objects are processed one by one, so that memory is a few rows of `A` numbers.
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

    A prior is positive if its IoU with its best object is at least `positive_iou`, negative if it
    is less than `negative_iou`, and ignored otherwise. In addition, every object gets one prior for
    itself; objects with a larger best IoU come first. A negative prior is ignored if more than the
    fraction `crowd_overlap` of its area is in a crowd region.

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
        """Matches the priors of one image.

        Args:
            priors: `x1, y1, x2, y2`.
            boxes: ground truth `x1, y1, x2, y2`, with rows of padding.
            ordinary: which rows of `boxes` hold ordinary objects.
            crowd: which rows of `boxes` hold crowd regions.
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
    """Returns the labels of anchors with these IoUs with their best objects."""
    ignored_or_negative = jnp.where(overlaps >= negative_iou, Match.IGNORE, Match.NEGATIVE)
    return jnp.where(overlaps >= positive_iou, Match.POSITIVE, ignored_or_negative).astype(jnp.int32)


def _forced_matches(overlaps: Float32[Array, "N A"], ordinary: Bool[AnyArray, "N"]) -> Int32[Array, "A"]:
    """Returns the object that each prior must learn, or -1 for none.

    The object with the largest IoU of all gets the prior of this IoU, both are removed, and so on.
    The best IoU of an object with the remaining priors can only decrease, so its last value is an
    upper bound. An object's row is searched again only if the object has the largest bound, but its
    prior is already taken. This is rare, so the loop has about as many iterations as objects.
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
        # An object with a prior is removed; any other object gets the IoU of its best prior among
        # the remaining ones.
        bound = bound.at[first].set(jnp.where(free, -2.0, remaining.max()))
        choice = choice.at[first].set(remaining.argmax().astype(jnp.int32))
        return bound, choice, owner

    bound = jnp.where(ordinary, overlaps.max(1), -2.0)
    choice = overlaps.argmax(1).astype(jnp.int32)
    return jax.lax.while_loop(is_waiting, serve, (bound, choice, jnp.full(prior_count, -1, jnp.int32)))[2]
