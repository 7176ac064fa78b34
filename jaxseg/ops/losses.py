"""Losses whose exact form the originals' weights depend on; the usual ones come from optax."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

# PyTorch's binary cross entropy bounds each logarithm from below by this.
LOG_FLOOR = -100.0


def binary_cross_entropy(probabilities: Float32[Array, "*n"], targets: Bool[Array, "*n"]) -> Float32[Array, "*n"]:
    """Per element, of probabilities rather than logits; a certain and wrong answer costs 100 and has no gradient."""
    likelihood = jnp.where(targets, probabilities, 1.0 - probabilities)
    positive = likelihood > 0
    return -jnp.maximum(jnp.where(positive, jnp.log(jnp.where(positive, likelihood, 1.0)), LOG_FLOOR), LOG_FLOOR)
