"""The training state, and the compiled training step."""

import dataclasses
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int32, UInt32

from jaxseg.config import TrainConfig
from jaxseg.devices import on_mesh, replicated, split
from jaxseg.structures import Batch
from jaxseg.training.optimizer import Tree, descend, keep_if, learning_rate, update_average


@struct.dataclass
class TrainState:
    """Everything that a step reads and writes; it is the same on each device.

    Attributes:
        step: the number of finished steps, including skipped ones.
        params: the model's parameters.
        batch_stats: the running means and variances of batch norms.
        opt_state: the optimizer's buffers.
        ema_params: the moving average of the parameters, or None if the run keeps none.
        rng: the data of the run's random key; step i folds i into this key.
    """

    step: Int32[Array, ""]
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema_params: Tree | None
    rng: UInt32[Array, "..."]

    @property
    def evaluation_variables(self) -> dict[str, Tree]:
        """The variables for evaluation, with the averaged parameters if there are any."""
        return {"params": self.params if self.ema_params is None else self.ema_params, "batch_stats": self.batch_stats}


def create_state(variables: dict[str, Tree], optimizer: optax.GradientTransformation, train: TrainConfig) -> TrainState:
    """Makes the state before the first step."""
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.array, params) if train.ema_decay else None,
        rng=jax.random.key_data(jax.random.key(train.seed)),
    )


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, *, trained: Tree, train: TrainConfig, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Makes the compiled training step.

    If a loss or gradient is not finite, the step changes nothing but the step count.

    Args:
        model: a detector.
        optimizer: the result of `make_optimizer`.
        trained: for each parameter, whether it learns.
        train: the schedule, already autoscaled.
        mesh: the result of `make_mesh`.

    Returns:
        A function from the state, which it donates, and a global batch to the next state and to
        float32 scalars: `loss/<name>` for each loss, `loss/total`, `grad_norm` (of the trained
        parameters, before clipping), `learning_rate`, and `skipped` (1 if the step was skipped).
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        rngs = {"sampling": jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)}

        def total_loss(params: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            losses, updates = model.apply(variables, batch, train=True, method="losses", rngs=rngs, mutable=["batch_stats"])
            return sum(losses.values()), (losses, updates.get("batch_stats", state.batch_stats))

        (total, (losses, batch_stats)), gradients = jax.value_and_grad(total_loss, has_aux=True)(state.params)
        gradients = jax.tree.map(lambda gradient, learns: gradient if learns else jnp.zeros_like(gradient), gradients, trained)
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(total) & jnp.isfinite(grad_norm)
        rate = learning_rate(train, state.step)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = descend(state.params, updates, rate)
        ema_params = None if state.ema_params is None else update_average(state.ema_params, params, train.ema_decay, state.step)
        advanced = dataclasses.replace(state, params=params, batch_stats=batch_stats, opt_state=opt_state, ema_params=ema_params)
        scalars = {f"loss/{name}": loss for name, loss in losses.items()}
        scalars |= {"loss/total": total, "grad_norm": grad_norm, "learning_rate": rate, "skipped": (~finite).astype(jnp.float32)}
        return dataclasses.replace(keep_if(finite, advanced, state), step=state.step + 1), scalars

    copied = replicated(mesh)
    return jax.jit(on_mesh(train_step, mesh), in_shardings=(copied, split(mesh)), out_shardings=copied, donate_argnums=0)


def make_loss_step(model: nn.Module, mesh: Mesh) -> Callable[[dict[str, Tree], Batch], tuple[dict[str, Array], Array]]:
    """Makes the compiled computation of the validation losses.

    Args:
        model: a detector.
        mesh: the result of `make_mesh`.

    Returns:
        A function from variables and a global batch to the losses by name and the number of images.
    """

    def loss_step(variables: dict[str, Tree], batch: Batch) -> tuple[dict[str, Array], Array]:
        losses = model.apply(variables, batch, train=False, method="losses", rngs={"sampling": jax.random.key(0)})
        return cast(dict[str, Array], losses), batch.valid.sum()

    copied = replicated(mesh)
    return jax.jit(on_mesh(loss_step, mesh), in_shardings=(copied, split(mesh)), out_shardings=copied)
