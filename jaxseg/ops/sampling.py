"""Fixed-size choices among priors, as masks and padded index lists."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


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
