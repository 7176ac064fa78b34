"""Samplers, which select a fixed number of anchors or proposals, as masks or as rows."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.matching import Match


class SampledRows(NamedTuple):
    """The sampled anchors or proposals in a fixed number of rows; positives come first.

    Attributes:
        indices: the index of the anchor or proposal in the row.
        valid: whether the row holds an anchor or proposal.
        positive: whether it is positive.
    """

    indices: Int32[Array, "S"]
    valid: Bool[Array, "S"]
    positive: Bool[Array, "S"]


class _Chosen(NamedTuple):
    """The indices of positives and of negatives, and which of them are valid."""

    positives: Int32[Array, "P"]
    positives_count: Bool[Array, "P"]
    negatives: Int32[Array, "N"]
    negatives_count: Bool[Array, "N"]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples positives and negatives of one image at random, up to a fixed number of each.

    Attributes:
        count: the number of positives and negatives together, if there are enough negatives.
        positive_fraction: the largest fraction of positives in `count`.
    """

    count: int
    positive_fraction: float

    def masks(self, labels: Int32[Array, "A"], priorities: Float32[Array, "A"]) -> tuple[Bool[Array, "A"], Bool[Array, "A"]]:
        """Samples positives and negatives, and returns them as masks.

        Args:
            labels: values of `Match`.
            priorities: numbers above -1. Entries with the largest priorities are sampled, and the
                first ones if priorities are equal. Uniform random numbers give a uniform sample.
        """
        chosen = self._choose(labels, priorities)

        def mask(indices: Array, counts: Array) -> Bool[Array, "A"]:
            return jnp.zeros(labels.shape, bool).at[jnp.where(counts, indices, labels.shape[0])].set(True, mode="drop")

        return mask(chosen.positives, chosen.positives_count), mask(chosen.negatives, chosen.negatives_count)

    def rows(self, labels: Int32[Array, "A"], priorities: Float32[Array, "A"]) -> SampledRows:
        """Samples positives and negatives, and returns rows of these, followed by padding.

        Args:
            labels: values of `Match`.
            priorities: see `masks`.
        """
        chosen = self._choose(labels, priorities)
        row, found = jnp.arange(self.count), chosen.positives_count.sum()
        positive, valid = row < found, row < found + chosen.negatives_count.sum()
        # Negatives begin after all rows of positives, whether those are valid or not.
        place = jnp.where(positive, row, row - found + chosen.positives.size)
        indices = jnp.concatenate([chosen.positives, chosen.negatives])[jnp.where(valid, place, 0)]
        return SampledRows(jnp.where(valid, indices, 0), valid, positive)

    def _choose(self, labels: Int32[Array, "A"], priorities: Float32[Array, "A"]) -> _Chosen:
        """Chooses positives up to their limit, and then negatives up to the count."""
        size = labels.shape[0]
        positives, positives_count = choose(labels == Match.POSITIVE, priorities, min(int(self.count * self.positive_fraction), size))
        negatives, candidates = choose(labels == Match.NEGATIVE, priorities, min(self.count, size))
        there_is_room = jnp.arange(negatives.shape[0]) < self.count - positives_count.sum()
        return _Chosen(positives, positives_count, negatives, candidates & there_is_room)


def choose(mask: Bool[Array, "A"], priorities: Float32[Array, "A"], size: int) -> tuple[Int32[Array, "{size}"], Bool[Array, "{size}"]]:
    """Chooses the entries of a mask with the largest priorities.

    Args:
        mask: which entries can be chosen.
        priorities: numbers above -1; uniform random numbers give a uniform sample.
        size: the number of rows of the result, at most `A`.

    Returns:
        The indices of the entries, and which of these are valid.
    """
    best, indices = jax.lax.top_k(jnp.where(mask, priorities, -1.0), size)
    return indices.astype(jnp.int32), best > -1.0


def hardest(scores: Float32[Array, "A"], candidates: Bool[Array, "A"], count: Int32[Array, ""]) -> Bool[Array, "A"]:
    """Returns the `count` candidates with the largest scores, of equal ones the first."""
    order = jnp.argsort(jnp.where(candidates, -scores, jnp.inf), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return candidates & (rank < count)
