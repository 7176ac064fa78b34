"""Losses whose exact form the originals' weights depend on; the usual losses come from optax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

# PyTorch's binary cross entropy limits each logarithm from below by this value.
LOG_FLOOR = -100.0


def binary_cross_entropy(probabilities: Float32[Array, "*n"], targets: Bool[Array, "*n"]) -> Float32[Array, "*n"]:
    """Computes the binary cross entropy of each element, from probabilities instead of logits.

    The loss of a wrong prediction with a probability of 0 or 1 is 100, without a gradient.
    """
    likelihood = jnp.where(targets, probabilities, 1.0 - probabilities)
    positive = likelihood > 0
    return -jnp.maximum(jnp.where(positive, jnp.log(jnp.where(positive, likelihood, 1.0)), LOG_FLOOR), LOG_FLOOR)


def smooth_l1(predictions: Float32[Array, "*n"], targets: Float32[Array, "*n"], beta: float) -> Float32[Array, "*n"]:
    """Computes the smooth L1 loss of each element.

    It is `(x - y)^2 / (2 beta)` if the distance is less than `beta`, and `|x - y| - beta / 2`
    otherwise. If `beta` is 0, it is the L1 loss.
    """
    distance = jnp.abs(predictions - targets)
    if beta == 0:
        return distance
    return jnp.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)


def sigmoid_focal_loss(logits: Float32[Array, "*n"], targets: Bool[Array, "*n"], *, alpha: float, gamma: float) -> Float32[Array, "*n"]:
    """Computes RetinaNet's focal loss (arXiv:1708.02002, equation 5) of each element.

    optax computes the same numbers, but takes several times as long.

    Args:
        logits: the logit of each class.
        targets: whether the class is the correct one.
        alpha: the weight of correct classes; the weight of the others is 1 - `alpha`.
        gamma: the exponent that reduces the weight of elements with good predictions.
    """
    # If p is the probability of the correct result, then log(p) = -softplus(-margin) and
    # log(1 - p) = -softplus(margin).
    margin = jnp.where(targets, logits, -logits)
    weight = jnp.where(targets, alpha, 1.0 - alpha) * jnp.exp(-gamma * jax.nn.softplus(margin))
    return weight * jax.nn.softplus(-margin)
