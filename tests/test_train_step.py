"""One compiled training step: the state that it changes or keeps, and its compiled program."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_training import CONFIG, TinyDetector, init_tiny, tiny_batch, trainable_tiny

from jaxseg.devices import make_mesh, replicated, to_global
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.step import create_state, make_loss_step, make_train_step


@functools.cache
def compiled_step(**overrides):
    """Returns a step, which compiles once, with its optimizer and mesh."""
    train = dataclasses.replace(CONFIG.train, **overrides)
    model, mesh = TinyDetector(), make_mesh()
    trained = trainable_tiny(CONFIG, init_tiny(model, CONFIG)["params"])
    optimizer = make_optimizer(train, trained)
    return make_train_step(model, optimizer, trained=trained, train=train, mesh=mesh), optimizer, train, mesh


def tiny_step(**overrides):
    """Returns a compiled step, with a new state and a batch for it."""
    step, optimizer, train, mesh = compiled_step(**overrides)
    state = jax.device_put(create_state(init_tiny(TinyDetector(), CONFIG), optimizer, train), replicated(mesh))
    return step, state, lambda **options: to_global(tiny_batch(np.arange(8), **options), mesh)


def test_a_step_with_a_nan_changes_nothing_but_the_count():
    step, state, batch = tiny_step(ema_decay=0.5)
    state, _ = step(state, batch())
    before = jax.device_get(state)
    state, scalars = step(state, batch(poisoned=True))
    assert (float(scalars["skipped"]), int(state.step)) == (1.0, 2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(dataclasses.replace(state, step=before.step)), before)
    state, scalars = step(state, batch())
    assert (float(scalars["skipped"]), int(state.step)) == (0.0, 3)
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (state.params, before.params)), strict=True))


def test_the_step_uses_up_the_state_it_is_given():
    step, state, batch = tiny_step(ema_decay=0.5)
    step(state, batch())
    assert state.params["head"]["kernel"].is_deleted()


def test_steps_draw_different_random_numbers():
    step, state, batch = tiny_step(learning_rate=1e-30, warmup_steps=0, weight_decay=0.0)
    state, first = step(state, batch())
    _, second = step(state, batch())
    assert float(first["loss/box"]) != float(second["loss/box"])


def test_the_average_follows_the_parameters():
    step, state, batch = tiny_step(ema_decay=0.5)
    start = np.asarray(state.params["head"]["kernel"])
    state, _ = step(state, batch())
    # In the first step, the decay of the average is 1/10; see `update_average`.
    expected = 0.1 * start + 0.9 * np.asarray(state.params["head"]["kernel"])
    np.testing.assert_allclose(state.ema_params["head"]["kernel"], expected, rtol=1e-6)
    assert state.evaluation_variables["params"] is state.ema_params


def test_validation_losses_leave_the_statistics_alone_and_repeat():
    _, state, batch = tiny_step()
    loss_step = make_loss_step(TinyDetector(), make_mesh())
    first, second = (jax.device_get(loss_step(state.evaluation_variables, batch())) for _ in range(2))
    assert first == second
    assert (set(first[0]), first[1]) == ({"box", "class"}, 8)


@pytest.mark.parametrize(("frozen", "convolutions"), [("", 2), ("convolution", 1)])
def test_gradients_of_frozen_parameters_are_not_compiled(frozen, convolutions):
    """There is one convolution in the forward pass, and one for the kernel's gradient if it learns.

    The image has no gradient.
    """
    model, mesh = TinyDetector(), make_mesh()
    variables = init_tiny(model, CONFIG)
    trained = {module: jax.tree.map(lambda _, learns=module != frozen: learns, leaves) for module, leaves in variables["params"].items()}
    optimizer = make_optimizer(CONFIG.train, trained)
    state = create_state(variables, optimizer, CONFIG.train)
    step = make_train_step(model, optimizer, trained=trained, train=CONFIG.train, mesh=mesh)
    program = step.lower(state, tiny_batch(np.arange(8))).compile()
    assert program.as_text().count(" convolution(") == convolutions
