"""The optimizers, SGD and AdamW, with the learning rate schedule and the average of parameters.

The optimizer computes a direction and does not know the learning rate, which is a pure function of
the step. A skipped step therefore leaves the optimizer's state as it is, while the schedule goes
on.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.config import TrainConfig
from jaxseg.models.freezing import is_norm

# A pytree of parameters, or of one value per parameter.
Tree = Any


def autoscaled(train: TrainConfig) -> TrainConfig:
    """Scales the schedule to the batch size, as the original's autoscaling does.

    With `f = batch_size / autoscale_batch_size`, the learning rate is multiplied by f, and the
    number of steps and every decay step are divided by f and rounded down. The warm-up keeps its
    length and its first rate. `autoscale_batch_size = 0` changes nothing, and
    `autoscale_steps = False` changes only the rate.
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


def in_steps(train: TrainConfig, images: int) -> TrainConfig:
    """Converts the epochs of a schedule, if it has any, to steps.

    An epoch has `ceil(images / batch_size)` steps, as in mmdetection.

    Args:
        train: the schedule; `epochs` and `decay_epochs`, if there are any, replace `steps` and
            `decay_steps`.
        images: the number of training images.
    """
    if not train.epochs:
        return train
    steps = -(-images // train.batch_size)
    return dataclasses.replace(
        train,
        epochs=0,
        decay_epochs=(),
        steps=train.epochs * steps,
        decay_steps=tuple(epoch * steps for epoch in train.decay_epochs),
    )


def learning_rate(train: TrainConfig, step: Int32[Array, ""] | int) -> Float32[Array, ""]:
    """Returns the learning rate of the update after `step` finished steps.

    The schedule "steps" multiplies the rate by `decay_factor` at each of `decay_steps`, and
    "cosine" lets it fall to 0 at `steps`. The warm-up takes the first `warmup_steps` steps, in one
    of two ways.

    With `warmup_factor`, the rate of such a schedule is multiplied by a factor that grows linearly
    from `warmup_factor` to 1, as in maskrcnn-benchmark, mmdetection and detectron2.

    Without it, the rate itself grows linearly from `warmup_learning_rate`, and a cosine starts
    after the warm-up. YOLACT's original sets the rate of the warm-up first, and then the decayed
    rate if the step is a decay step. A decay step within the warm-up therefore has its rate for one
    step only, and the warm-up then goes on towards the full rate.

    Args:
        train: the schedule, already autoscaled and in steps.
        step: the number of finished steps.
    """
    step = jnp.asarray(step)
    if train.warmup_factor and train.warmup_steps:
        progress = jnp.minimum(step / train.warmup_steps, 1)
        without_warmup = dataclasses.replace(train, warmup_steps=0)
        return learning_rate(without_warmup, step) * (train.warmup_factor + (1 - train.warmup_factor) * progress)
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
    """Makes the optimizer without its learning rate, by which the updates must be multiplied.

    "sgd" is torch.optim.SGD: `buffer = momentum * buffer + gradient + weight_decay * parameter`,
    where the buffer is 0 before the first step. "adamw" (arXiv:1711.05101) takes `momentum` as its
    first decay rate and adds `weight_decay * parameter` to the direction. First, gradients are
    clipped by their global norm over the trained parameters, if this is configured. Last, the
    updates of biases, also of those of norms, are multiplied by `bias_rate_factor`.

    Args:
        train: the settings of the optimizer.
        trained: for each parameter, whether it learns. If not, its update is 0, and it has no decay
            and no state.
    """
    decay = optax.stateless(functools.partial(_add_decay, train))
    chain = optax.chain(
        *([optax.scale_by_adam(b1=train.momentum), decay] if train.optimizer == "adamw" else [decay, optax.trace(train.momentum)])
    )

    # Transformations without a state are not in the chain, so that their options can change when a
    # run is resumed.
    def update(gradients: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        if train.clip_norm:
            gradients, _ = optax.clip_by_global_norm(train.clip_norm).update(gradients, optax.EmptyState())
        updates, state = chain.update(gradients, state, params)
        return _map_with_names(lambda path, update: update * train.bias_rate_factor if _is_bias(path) else update, updates), state

    learning = optax.GradientTransformation(chain.init, update)
    return optax.partition({True: learning, False: optax.set_to_zero()}, trained)


def _add_decay(train: TrainConfig, updates: Tree, params: Tree) -> Tree:
    def decayed(path: tuple[str, ...], update: Array, parameter: Array) -> Array:
        decays = (train.decay_biases or not _is_bias(path)) and (train.decay_norms or not is_norm(path))
        return update + train.weight_decay * parameter if decays else update

    return _map_with_names(decayed, updates, params)


def _is_bias(path: tuple[str, ...]) -> bool:
    return path[-1] == "bias"


def _map_with_names(function: Callable[..., Array], *trees: Tree) -> Tree:
    """Is `jax.tree.map` with the path of each leaf, as a tuple of names, as the first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(tuple(key.key for key in path), *leaves), *trees)


def descend(params: Tree, updates: Tree, rate: Float32[Array, ""]) -> Tree:
    """Returns the parameters after a step, `parameter - rate * update`."""
    return jax.tree.map(lambda parameter, update: parameter - rate * update, params, updates)


def update_average(average: Tree, params: Tree, decay: float, step: Int32[Array, ""]) -> Tree:
    """Updates the exponential moving average of the parameters after `step` finished steps.

    The decay grows as `(1 + step) / (10 + step)` up to `decay`, as in TensorFlow's
    ExponentialMovingAverage with a step counter; otherwise the initial parameters would dominate
    the average of a short run.
    """
    decay_now = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda mean, parameter: mean * decay_now + parameter * (1 - decay_now), average, params)


def keep_if(condition: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """Returns the tree `new` if the condition holds, and otherwise `old`."""
    return jax.tree.map(lambda after, before: jnp.where(condition, after, before), new, old)
