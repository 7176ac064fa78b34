"""SGD, learning-rate schedules, weight decay, frozen parameters and the moving average.

SGD is compared with torch and with results by hand, and schedules with the originals' rates.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.config import TrainConfig
from jaxseg.training.optimizer import autoscaled, descend, in_steps, keep_if, learning_rate, make_optimizer, update_average

# The original's settings.
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
    # At step 10 both decays apply, as in the original.
    np.testing.assert_allclose(rates(train, [1, 2, 3, 4, 9, 10]), [0.25, 0.1, 0.75, 1.0, 1.0, 0.01], rtol=1e-6)


def test_a_decay_step_at_the_end_of_the_warm_up_stays():
    train = TrainConfig(learning_rate=1.0, warmup_steps=4, warmup_learning_rate=0.0, decay_steps=(4,))
    np.testing.assert_allclose(rates(train, [3, 4, 5]), [0.75, 0.1, 0.1], rtol=1e-6)


def test_the_cosine_falls_from_the_rate_to_nothing():
    train = TrainConfig(learning_rate=2.0, warmup_steps=10, warmup_learning_rate=1.0, steps=110, schedule="cosine")
    np.testing.assert_allclose(rates(train, [0, 5, 10, 60, 110, 500]), [1, 1.5, 2, 1, 0, 0], atol=1e-6)


# The settings of two-stage detectors; their schedulers computed the rates that follow.
R_CNN = TrainConfig(learning_rate=0.02, steps=90_000, decay_steps=(60_000, 80_000), warmup_steps=500, warmup_factor=1 / 3)
R_CNN_STEPS = [0, 1, 2, 100, 250, 499, 500, 501, 59_999, 60_000, 60_001, 79_999, 80_000, 89_999]
AFTER_WARMUP = [0.02, 0.002, 0.002, 0.002, 0.0002, 0.0002]


def test_the_rate_of_maskrcnn_benchmark():
    warm = [0.00666666667, 0.00669333333, 0.00672, 0.00933333333, 0.0133333333, 0.0199733333, 0.02, 0.02]
    np.testing.assert_allclose(rates(R_CNN, R_CNN_STEPS), warm + AFTER_WARMUP, rtol=1.2e-7)


def test_the_rate_of_detectron2():
    train = dataclasses.replace(R_CNN, warmup_steps=1000, warmup_factor=1e-3)
    warm = [2e-05, 3.998e-05, 5.996e-05, 0.002018, 0.005015, 0.00999002, 0.01001, 0.01002998]
    np.testing.assert_allclose(rates(train, R_CNN_STEPS), warm + AFTER_WARMUP, rtol=1.2e-7)


def test_the_rate_of_mmdetection():
    train = in_steps(
        dataclasses.replace(R_CNN, batch_size=16, epochs=12, decay_epochs=(8, 11), warmup_factor=1e-3),
        # This is the number of COCO's training images with objects.
        images=117_266,
    )
    assert (train.steps, train.epochs) == (12 * 7330, 0)
    warm = [2e-05, 0.002018, 0.004016, 0.006014, 0.008012, 0.01001, 0.012008, 0.014006, 0.016004, 0.018002]
    np.testing.assert_allclose(rates(train, list(range(0, 500, 50))), warm, rtol=1.2e-7)
    by_epoch = [0.02] * 7 + [0.002] * 3 + [0.0002]
    np.testing.assert_allclose(rates(train, [epoch * 7330 for epoch in range(1, 12)]), by_epoch, rtol=1.2e-7)
    np.testing.assert_allclose(rates(train, [8 * 7330 - 1, 11 * 7330 - 1]), [0.02, 0.002], rtol=1.2e-7)


def test_a_warm_up_by_a_factor_multiplies_decays_within_it():
    """This is the rule of maskrcnn-benchmark, which differs from that of YOLACT."""
    train = TrainConfig(learning_rate=1.0, warmup_steps=4, warmup_factor=0.5, decay_steps=(2, 10))
    np.testing.assert_allclose(rates(train, [0, 1, 2, 3, 4, 9, 10]), [0.5, 0.625, 0.075, 0.0875, 0.1, 0.1, 0.01], rtol=1e-6)


def test_a_warm_up_by_a_factor_multiplies_a_cosine_from_the_start():
    train = TrainConfig(learning_rate=2.0, warmup_steps=10, warmup_factor=0.1, steps=20, schedule="cosine")
    np.testing.assert_allclose(rates(train, [0, 10, 20]), [0.2, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(("batch_size", "steps", "rate"), [(16, 63, 0.02), (4, 250, 0.005), (12, 84, 0.015)])
def test_epochs_are_as_long_for_any_batch_size(batch_size, steps, rate):
    train = dataclasses.replace(R_CNN, epochs=3, decay_epochs=(1, 2), batch_size=batch_size, autoscale_batch_size=16)
    train = in_steps(autoscaled(train), images=1000)
    assert (train.steps, train.decay_steps, train.warmup_steps) == (3 * steps, (steps, 2 * steps), 500)
    assert train.learning_rate == pytest.approx(rate)


def test_without_epochs_the_steps_stay():
    assert in_steps(BASE, images=1000) == BASE


def test_autoscaling_multiplies_the_rate_and_floors_the_steps():
    scaled = autoscaled(TrainConfig(batch_size=12, steps=100, decay_steps=(10, 50)))
    assert scaled.learning_rate == pytest.approx(1.5e-3)
    assert (scaled.steps, scaled.decay_steps, scaled.warmup_steps, scaled.warmup_learning_rate) == (66, (6, 33), 500, 1e-4)


@pytest.mark.parametrize("train", [TrainConfig(batch_size=8), TrainConfig(batch_size=16, autoscale_batch_size=0)])
def test_autoscaling_leaves_alone(train):
    assert autoscaled(train) == train


def descended(train: TrainConfig, params, gradients, trained):
    """Returns the parameters after one step for each gradient."""
    optimizer = make_optimizer(train, trained)
    state = optimizer.init(params)
    for step, gradient in enumerate(gradients):
        updates, state = optimizer.update(gradient, state, params)
        params = descend(params, updates, learning_rate(train, step))
    return params, state


def test_three_steps_by_hand():
    train = TrainConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.1, warmup_steps=0, decay_steps=(2,))
    params, _ = descended(train, {"w": jnp.float32(1.0)}, [{"w": jnp.float32(g)} for g in (1.0, 2.0, -1.0)], {"w": True})
    # The momentum buffers are 1.1, 2.639 and 0.38211, and the rates are 0.1, 0.1 and 0.01.
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


# The parameters of a convolution and a norm, with names as in the models, and a frozen one.
SHAPES = {"conv1": {"kernel": (3, 4), "bias": (4,)}, "bn1": {"scale": (4,), "bias": (4,)}, "stem": {"kernel": (2,)}}
LEARNS = {"conv1": {"kernel": True, "bias": True}, "bn1": {"scale": True, "bias": True}, "stem": {"kernel": False}}
# The options of each original, and the factors of the rate and of the decay of its parameter
# groups.
GROUPS = {
    "yolact": ({}, {}),
    "maskrcnn_benchmark": (
        {"decay_biases": False, "bias_rate_factor": 2.0},
        {("conv1", "bias"): (2.0, 0.0), ("bn1", "bias"): (2.0, 0.0)},
    ),
    "detectron2": ({"decay_norms": False}, {("bn1", "scale"): (1.0, 0.0), ("bn1", "bias"): (1.0, 0.0)}),
}


@pytest.mark.parametrize("original", GROUPS)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_agrees_with_torch(original, optimizer):
    """Both take eight steps with the parameter groups of an original."""
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    gradients = [jax.tree.map(lambda value: rng.normal(size=value.shape).astype(np.float32), start) for _ in range(8)]
    options, groups = GROUPS[original]
    train = TrainConfig(
        optimizer=optimizer.lower(),
        learning_rate=0.1,
        weight_decay=0.05,
        warmup_steps=3,
        warmup_learning_rate=0.01,
        decay_steps=(6,),
        **options,
    )

    theirs = {(module, leaf): torch.nn.Parameter(torch.tensor(value)) for module, leaves in start.items() for leaf, value in leaves.items()}
    factors = {name: groups.get(name, (1.0, 1.0)) for name in theirs if name[0] != "stem"}
    momentum = {"momentum": 0.9} if optimizer == "SGD" else {"betas": (0.9, 0.999)}
    descent = getattr(torch.optim, optimizer)(
        [{"params": [theirs[name]], "weight_decay": 0.05 * decay} for name, (_, decay) in factors.items()], lr=0.1, **momentum
    )
    for rate, gradient in zip([0.01, 0.04, 0.07, 0.1, 0.1, 0.1, 0.01, 0.01], gradients, strict=True):
        for group, (factor, _) in zip(descent.param_groups, factors.values(), strict=True):
            group["lr"] = rate * factor
        for (module, leaf), parameter in theirs.items():
            parameter.grad = torch.tensor(gradient[module][leaf])
        descent.step()

    ours, _ = descended(train, start, gradients, LEARNS)
    # Optax computes 1 - 0.999 ** step in float32.
    tolerance = 1e-6 if optimizer == "SGD" else 5e-6
    for (module, leaf), parameter in theirs.items():
        np.testing.assert_allclose(ours[module][leaf], parameter.detach().numpy(), rtol=0, atol=tolerance, err_msg=f"{module}/{leaf}")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_state_does_not_depend_on_options_that_need_none(optimizer):
    """So a run can be resumed with other options."""
    params = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    plain = make_optimizer(TrainConfig(optimizer=optimizer), LEARNS).init(params)
    options = {"clip_norm": 10.0, "decay_biases": False, "decay_norms": False, "bias_rate_factor": 2.0, "weight_decay": 0.0}
    other = make_optimizer(TrainConfig(optimizer=optimizer, **options), LEARNS).init(params)
    assert jax.tree.structure(plain) == jax.tree.structure(other)


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
