"""SGD as dbolya/yolact trains with it, or AdamW: the rate as a pure function of the step, decay on all that learns, an average.

The optimizer gives a direction and never sees the rate. So a skipped step leaves its state alone while the schedule goes on.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.config import TrainConfig

# A pytree of parameters, or of one value a parameter.
Tree = Any


def autoscaled(train: TrainConfig) -> TrainConfig:
    """The schedule for the batch size in use, as the original's autoscaling.

    With `f = batch_size / autoscale_batch_size` the rate is multiplied by f, and the number of steps and every decay step are
    floor-divided by f. Warm-up keeps its length and its first rate. `autoscale_batch_size = 0` changes nothing, and
    `autoscale_steps = False` changes the rate only.
    """
    if not train.autoscale_batch_size:
        return train
    factor = train.batch_size / train.autoscale_batch_size
    train = dataclasses.replace(train, learning_rate=train.learning_rate * factor)
    if not train.autoscale_steps:
        return train
    return dataclasses.replace(
        train,
        steps=int(train.steps // factor),
        decay_steps=tuple(int(step // factor) for step in train.decay_steps),
    )


def learning_rate(train: TrainConfig, step: Int32[Array, ""] | int) -> Float32[Array, ""]:
    """The rate of the update that follows `step` finished steps.

    Warm-up is linear from `warmup_learning_rate` at step 0 to `learning_rate` at `warmup_steps`, both included. After it,
    "steps" multiplies by `decay_factor` at each of `decay_steps`, and "cosine" falls to 0 at `steps`.

    The original sets the warm-up rate first and the decayed one after it, and sets the latter only where a decay step is
    reached. So a decay step within the warm-up rules for one step, and warm-up then goes on towards the full rate.

    Args:
        train: the schedule, already autoscaled.
        step: 0 is the first step.
    """
    step = jnp.asarray(step)
    rate = jnp.float32(train.learning_rate)
    if train.schedule == "cosine":
        progress = (step - train.warmup_steps) / max(train.steps - train.warmup_steps, 1)
        rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    if train.warmup_steps:
        warm = train.warmup_learning_rate + (train.learning_rate - train.warmup_learning_rate) * (step / train.warmup_steps)
        rate = jnp.where(step <= train.warmup_steps, warm, rate)
    if train.schedule == "steps":
        for passed, decay_step in enumerate(train.decay_steps, start=1):
            rules = step >= decay_step if decay_step >= train.warmup_steps else step == decay_step
            rate = jnp.where(rules, train.learning_rate * train.decay_factor**passed, rate)
    return rate.astype(jnp.float32)


def make_optimizer(train: TrainConfig, trained: Tree) -> optax.GradientTransformation:
    """The optimizer without its rate: subtract `rate * updates` from the parameters.

    "sgd" is torch.optim.SGD: `buffer = momentum * buffer + gradient + weight_decay * parameter`, with a buffer of 0 before
    the first step. "adamw" (arXiv:1711.05101) takes `momentum` as its first decay and adds `weight_decay * parameter` to
    the direction. Clipping by the global norm of the trained parameters' gradients, if any, comes first.

    Args:
        train: optimizer, momentum, weight_decay and clip_norm.
        trained: True for each parameter that learns; the others get an update of 0, no decay and no state.
    """
    steps = [optax.clip_by_global_norm(train.clip_norm)] if train.clip_norm else []
    decay = optax.add_decayed_weights(train.weight_decay)
    steps += [optax.scale_by_adam(b1=train.momentum), decay] if train.optimizer == "adamw" else [decay, optax.trace(train.momentum)]
    return optax.partition({True: optax.chain(*steps), False: optax.set_to_zero()}, trained)


def descend(params: Tree, updates: Tree, rate: Float32[Array, ""]) -> Tree:
    """The parameters after one step: `parameter - rate * update`."""
    return jax.tree.map(lambda parameter, update: parameter - rate * update, params, updates)


def update_average(average: Tree, params: Tree, decay: float, step: Int32[Array, ""]) -> Tree:
    """The exponential moving average after `step` finished steps.

    The decay grows as `(1 + step) / (10 + step)` up to `decay`, as TensorFlow's ExponentialMovingAverage with its counter does;
    else a short run would end with an average of its start.
    """
    decay_now = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, parameter: mean * decay_now + parameter * (1 - decay_now), average, params)


def keep_if(condition: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` where the condition holds, else `old`, leaf by leaf."""
    return jax.tree.map(lambda after, before: jnp.where(condition, after, before), new, old)
