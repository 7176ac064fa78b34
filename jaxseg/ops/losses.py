"""Losses whose exact form the originals' weights depend on; the usual ones come from optax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

# PyTorch's binary cross entropy bounds each logarithm from below by this.
LOG_FLOOR = -100.0


def binary_cross_entropy(probabilities: Float32[Array, "*n"], targets: Bool[Array, "*n"]) -> Float32[Array, "*n"]:
    """Per element, of probabilities rather than logits; a certain and wrong answer costs 100 and has no gradient."""
    likelihood = jnp.where(targets, probabilities, 1.0 - probabilities)
    positive = likelihood > 0
    return -jnp.maximum(jnp.where(positive, jnp.log(jnp.where(positive, likelihood, 1.0)), LOG_FLOOR), LOG_FLOOR)


def smooth_l1(predictions: Float32[Array, "*n"], targets: Float32[Array, "*n"], beta: float) -> Float32[Array, "*n"]:
    """Per element, (x - y)^2 / (2 beta) where they are nearer than `beta`, |x - y| - beta / 2 elsewhere; L1 for beta 0."""
    distance = jnp.abs(predictions - targets)
    if beta == 0:
        return distance
    return jnp.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)


def sigmoid_focal_loss(logits: Float32[Array, "*n"], targets: Bool[Array, "*n"], *, alpha: float, gamma: float) -> Float32[Array, "*n"]:
    """RetinaNet's loss (arXiv:1708.02002, equation 5) per element; optax has the same numbers at several times the cost.

    Args:
        logits: of each class.
        targets: the element's class is this one.
        alpha: weight of targets; the others weigh 1 - `alpha`.
        gamma: how strongly elements that are right already lose weight.
    """
    # The probability p of the right answer: log(p) = -softplus(-margin), log(1 - p) = -softplus(margin).
    margin = jnp.where(targets, logits, -logits)
    weight = jnp.where(targets, alpha, 1.0 - alpha) * jnp.exp(-gamma * jax.nn.softplus(margin))
    return weight * jax.nn.softplus(-margin)
