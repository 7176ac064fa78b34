"""Fixed-size choices among priors, anchors and proposals, as masks and padded index lists."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.ops.matching import Match


class SampledRois(NamedTuple):
    """Rows of the proposals, positives first; which of the `count` rows count, and which of them are positive."""

    indices: Int32[Array, "S"]
    valid: Bool[Array, "S"]
    positive: Bool[Array, "S"]


def hardest(scores: Float32[Array, "A"], candidates: Bool[Array, "A"], count: Int32[Array, ""]) -> Bool[Array, "A"]:
    """The `count` candidates with the largest scores; the first of equals wins."""
    order = jnp.argsort(jnp.where(candidates, -scores, jnp.inf), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return candidates & (rank < count)


def choose(mask: Bool[Array, "A"], priorities: Float32[Array, "A"], size: int) -> tuple[Int32[Array, "{size}"], Bool[Array, "{size}"]]:
    """At most `size` entries of `mask`, those with the largest priorities.

    Args:
        mask: entries that may be chosen.
        priorities: above -1; uniform random numbers make it a uniform sample.
        size: rows of the answer; at most `A`.

    Returns:
        Indices, and which of them count.
    """
    best, indices = jax.lax.top_k(jnp.where(mask, priorities, -1.0), size)
    return indices.astype(jnp.int32), best > -1.0


def _sample(
    labels: Int32[Array, "A"], priorities: Float32[Array, "A"], count: int, positive_fraction: float
) -> tuple[Int32[Array, "P"], Bool[Array, "P"], Int32[Array, "S"], Bool[Array, "S"]]:
    """Positives up to their share of `count`, then negatives up to `count` in all: indices of each, and which count."""
    size = labels.shape[0]
    positives, counts = choose(labels == Match.POSITIVE, priorities, min(int(count * positive_fraction), size))
    negatives, candidates = choose(labels == Match.NEGATIVE, priorities, min(count, size))
    return positives, counts, negatives, candidates & (jnp.arange(negatives.shape[0]) < count - counts.sum())


def sample_labels(
    labels: Int32[Array, "A"], priorities: Float32[Array, "A"], *, count: int, positive_fraction: float
) -> tuple[Bool[Array, "A"], Bool[Array, "A"]]:
    """The anchors an RPN learns from: the positives and the negatives among them, as masks.

    Args:
        labels: of `Match`.
        priorities: above -1; the largest are chosen, the first of equals. Uniform random numbers make it a uniform sample.
        count: anchors in all, where there are enough negatives.
        positive_fraction: part of `count` that positives take at most.
    """
    positives, positive_counts, negatives, negative_counts = _sample(labels, priorities, count, positive_fraction)

    def mask(indices: Array, counts: Array) -> Bool[Array, "A"]:
        return jnp.zeros(labels.shape, bool).at[jnp.where(counts, indices, labels.shape[0])].set(True, mode="drop")

    return mask(positives, positive_counts), mask(negatives, negative_counts)


def sample_rois(labels: Int32[Array, "A"], priorities: Float32[Array, "A"], *, count: int, positive_fraction: float) -> SampledRois:
    """The proposals a second stage learns from, in `count` rows: positives, then negatives, then rows that do not count.

    Args:
        labels: of `Match`.
        priorities: see `sample_labels`.
        count: rows of the answer.
        positive_fraction: part of `count` that positives take at most.
    """
    positives, positive_counts, negatives, negative_counts = _sample(labels, priorities, count, positive_fraction)
    row, found = jnp.arange(count), positive_counts.sum()
    positive, valid = row < found, row < found + negative_counts.sum()
    # Negatives begin behind the rows of positives, however many of those count.
    place = jnp.where(positive, row, row - found + positives.size)
    indices = jnp.concatenate([positives, negatives])[jnp.where(valid, place, 0)]
    return SampledRois(jnp.where(valid, indices, 0), valid, positive)
