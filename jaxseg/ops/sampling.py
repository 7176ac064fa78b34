"""Samplers: choices of a fixed size among anchors and proposals, as masks or as rows."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.matching import Match


class SampledRows(NamedTuple):
    """The anchors or proposals that are sampled, in rows of a fixed number; positives come first.

    Attributes:
        indices: which anchor or proposal the row holds.
        valid: whether the row holds one.
        positive: whether it is a positive one.
    """

    indices: Int32[Array, "S"]
    valid: Bool[Array, "S"]
    positive: Bool[Array, "S"]


class _Chosen(NamedTuple):
    """Indices of positives and of negatives, and which of them count."""

    positives: Int32[Array, "P"]
    positives_count: Bool[Array, "P"]
    negatives: Int32[Array, "N"]
    negatives_count: Bool[Array, "N"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples positives and negatives of one image at random, up to a fixed number of each.

    Attributes:
        count: the number of positives and negatives together, where there are enough negatives.
        positive_fraction: the part of `count` that positives take at most.
    """

    count: int
    positive_fraction: float

    def masks(self, labels: Int32[Array, "A"], priorities: Float32[Array, "A"]) -> tuple[Bool[Array, "A"], Bool[Array, "A"]]:
        """The sampled positives, and the sampled negatives.

        Args:
            labels: values of `Match`.
            priorities: numbers above -1. The largest are sampled, the first of equals; uniform
                random numbers make it a uniform sample.
        """
        chosen = self._choose(labels, priorities)

        def mask(indices: Array, counts: Array) -> Bool[Array, "A"]:
            return jnp.zeros(labels.shape, bool).at[jnp.where(counts, indices, labels.shape[0])].set(True, mode="drop")

        return mask(chosen.positives, chosen.positives_count), mask(chosen.negatives, chosen.negatives_count)

    def rows(self, labels: Int32[Array, "A"], priorities: Float32[Array, "A"]) -> SampledRows:
        """The sampled positives, then the sampled negatives, and then rows that hold nothing.

        Args:
            labels: values of `Match`.
            priorities: see `masks`.
        """
        chosen = self._choose(labels, priorities)
        row, found = jnp.arange(self.count), chosen.positives_count.sum()
        positive, valid = row < found, row < found + chosen.negatives_count.sum()
        # Negatives begin behind all rows of positives, however many of those count.
        place = jnp.where(positive, row, row - found + chosen.positives.size)
        indices = jnp.concatenate([chosen.positives, chosen.negatives])[jnp.where(valid, place, 0)]
        return SampledRows(jnp.where(valid, indices, 0), valid, positive)

    def _choose(self, labels: Int32[Array, "A"], priorities: Float32[Array, "A"]) -> _Chosen:
        """Positives up to their part of the count, and then negatives up to the count."""
        size = labels.shape[0]
        positives, positives_count = choose(labels == Match.POSITIVE, priorities, min(int(self.count * self.positive_fraction), size))
        negatives, candidates = choose(labels == Match.NEGATIVE, priorities, min(self.count, size))
        there_is_room = jnp.arange(negatives.shape[0]) < self.count - positives_count.sum()
        return _Chosen(positives, positives_count, negatives, candidates & there_is_room)


def choose(mask: Bool[Array, "A"], priorities: Float32[Array, "A"], size: int) -> tuple[Int32[Array, "{size}"], Bool[Array, "{size}"]]:
    """Chooses the entries of a mask with the largest priorities.

    Args:
        mask: the entries that may be chosen.
        priorities: numbers above -1; uniform random numbers make it a uniform sample.
        size: the number of rows of the answer, at most `A`.

    Returns:
        The indices of the entries, and which of these count.
    """
    best, indices = jax.lax.top_k(jnp.where(mask, priorities, -1.0), size)
    return indices.astype(jnp.int32), best > -1.0


def hardest(scores: Float32[Array, "A"], candidates: Bool[Array, "A"], count: Int32[Array, ""]) -> Bool[Array, "A"]:
    """The `count` candidates with the largest scores, the first of equals."""
    order = jnp.argsort(jnp.where(candidates, -scores, jnp.inf), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return candidates & (rank < count)
