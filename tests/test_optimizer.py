"""SGD against torch's and by hand; the schedule's rate at literal steps; frozen parameters; clipping; the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import TrainConfig
from jaxseg.training.optimizer import autoscaled, descend, keep_if, learning_rate, make_optimizer, update_average

# The original's numbers.
BASE = TrainConfig()


def rates(train: TrainConfig, steps: list[int]) -> list[float]:
    schedule = jax.jit(lambda step: learning_rate(train, step))
    return [float(schedule(step)) for step in steps]


def test_the_rate_warms_up_and_decays_as_the_original():
    steps = [0, 250, 500, 501, 279_999, 280_000, 600_000, 700_000, 799_999]
    expected = [1e-4, 5.5e-4, 1e-3, 1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
    np.testing.assert_allclose(rates(BASE, steps), expected, rtol=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert rates(TrainConfig(warmup_steps=0), [0]) == [pytest.approx(1e-3)]


def test_a_decay_step_within_the_warm_up_rules_for_that_step_only():
    train = TrainConfig(learning_rate=1.0, warmup_steps=4, warmup_learning_rate=0.0, decay_steps=(2, 10))
    # At 10 both decays count, as the original counts them.
    np.testing.assert_allclose(rates(train, [1, 2, 3, 4, 9, 10]), [0.25, 0.1, 0.75, 1.0, 1.0, 0.01], rtol=1e-6)


def test_a_decay_step_at_the_end_of_the_warm_up_stays():
    train = TrainConfig(learning_rate=1.0, warmup_steps=4, warmup_learning_rate=0.0, decay_steps=(4,))
    np.testing.assert_allclose(rates(train, [3, 4, 5]), [0.75, 0.1, 0.1], rtol=1e-6)


def test_the_cosine_falls_from_the_rate_to_nothing():
    train = TrainConfig(learning_rate=2.0, warmup_steps=10, warmup_learning_rate=1.0, steps=110, schedule="cosine")
    np.testing.assert_allclose(rates(train, [0, 5, 10, 60, 110, 500]), [1, 1.5, 2, 1, 0, 0], atol=1e-6)


def test_autoscaling_multiplies_the_rate_and_floors_the_steps():
    scaled = autoscaled(TrainConfig(batch_size=12, steps=100, decay_steps=(10, 50)))
    assert scaled.learning_rate == pytest.approx(1.5e-3)
    assert (scaled.steps, scaled.decay_steps, scaled.warmup_steps, scaled.warmup_learning_rate) == (66, (6, 33), 500, 1e-4)


@pytest.mark.parametrize("train", [TrainConfig(batch_size=8), TrainConfig(batch_size=16, autoscale_batch_size=0)])
def test_autoscaling_leaves_alone(train):
    assert autoscaled(train) == train


def descended(train: TrainConfig, params, gradients, trained):
    """The parameters after one step a gradient."""
    optimizer = make_optimizer(train, trained)
    state = optimizer.init(params)
    for step, gradient in enumerate(gradients):
        updates, state = optimizer.update(gradient, state, params)
        params = descend(params, updates, learning_rate(train, step))
    return params, state


def test_three_steps_by_hand():
    train = TrainConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.1, warmup_steps=0, decay_steps=(2,))
    params, _ = descended(train, {"w": jnp.float32(1.0)}, [{"w": jnp.float32(g)} for g in (1.0, 2.0, -1.0)], {"w": True})
    # buffers 1.1, 2.639, 0.38211; rates 0.1, 0.1, 0.01
    np.testing.assert_allclose(params["w"], 1 - 0.11 - 0.2639 - 0.0038211, rtol=1e-5)


def test_frozen_parameters_neither_move_nor_decay_nor_have_state():
    params = {"w": jnp.ones(2), "frozen": jnp.full(3, 2.0)}
    trained = {"w": True, "frozen": False}
    after, state = descended(TrainConfig(warmup_steps=0), params, [{"w": jnp.ones(2), "frozen": jnp.ones(3)}], trained)
    np.testing.assert_array_equal(after["frozen"], params["frozen"])
    assert (after["w"] != params["w"]).all()
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(2,)]


def test_clipping_looks_at_the_global_norm_of_what_learns():
    train = TrainConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.0, warmup_steps=0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1), "frozen": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "frozen": jnp.array([1000.0])}
    after, _ = descended(train, params, [gradient], {"a": True, "b": True, "frozen": False})
    np.testing.assert_allclose([after["a"][0], after["b"][0]], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_agrees_with_torch(momentum):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in {"kernel": (3, 4), "bias": (4,)}.items()}
    gradients = [{name: rng.normal(size=value.shape).astype(np.float32) for name, value in start.items()} for _ in range(8)]
    train = TrainConfig(
        learning_rate=0.1, momentum=momentum, weight_decay=0.05, warmup_steps=3, warmup_learning_rate=0.01, decay_steps=(6,)
    )

    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = torch.optim.SGD(theirs.values(), lr=0.1, momentum=momentum, weight_decay=0.05)
    for rate, gradient in zip([0.01, 0.04, 0.07, 0.1, 0.1, 0.1, 0.01, 0.01], gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[name])
        optimizer.step()

    ours, _ = descended(train, start, gradients, {"kernel": True, "bias": True})
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=2e-6, atol=2e-7)


def test_the_average_starts_fast_and_ends_slow():
    mean = update_average({"w": jnp.float32(0.0)}, {"w": jnp.float32(1.0)}, 0.99, jnp.int32(0))["w"]
    np.testing.assert_allclose(mean, 0.9, rtol=1e-6)
    mean = update_average({"w": jnp.float32(0.0)}, {"w": jnp.float32(1.0)}, 0.99, jnp.int32(10_000))["w"]
    np.testing.assert_allclose(mean, 0.01, rtol=1e-4)


def test_keep_if_does_not_let_a_nan_through():
    kept = keep_if(jnp.bool_(False), {"w": jnp.array([jnp.nan, 1.0])}, {"w": jnp.array([2.0, 3.0])})
    np.testing.assert_array_equal(kept["w"], [2.0, 3.0])


def test_adamw_is_optax_adamw():
    train = TrainConfig(optimizer="adamw", momentum=0.9, weight_decay=0.1, clip_norm=0.0)
    params = {"w": jnp.array([1.0, -2.0])}
    ours, theirs = make_optimizer(train, {"w": True}), optax.adamw(0.01, b1=0.9, weight_decay=0.1)
    a, b, state_a, state_b = params, params, ours.init(params), theirs.init(params)
    for i in range(3):
        gradient = {"w": jnp.array([0.3, -0.1]) * (i + 1)}
        updates, state_a = ours.update(gradient, state_a, a)
        a = descend(a, updates, jnp.float32(0.01))
        updates, state_b = theirs.update(gradient, state_b, b)
        b = optax.apply_updates(b, updates)
    np.testing.assert_allclose(a["w"], b["w"], rtol=1e-6)
