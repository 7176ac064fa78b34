"""Three SGD steps of mmdetection's Faster R-CNN and of maskrcnn-benchmark's Mask R-CNN.

The losses, the learning rates and the parameters are compared.
"""

import dataclasses
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
from goldens import load_arrays
from jax.sharding import AxisType
from rcnn_originals import LOSSES, first_come, load_rcnn

import jaxseg
from jaxseg.devices import AXIS, replicated, to_global
from jaxseg.training.optimizer import in_steps, make_optimizer
from jaxseg.training.step import create_state, make_train_step
from jaxseg.weights.names import rcnn as names_rcnn

TRAJECTORIES = {
    "traj_mmdet": ("mmdet_fasterrcnn", names_rcnn.MMDETECTION),
    "traj_mrb": ("mrb_maskrcnn", names_rcnn.MASKRCNN_BENCHMARK),
}
# The first values of this parameter belong to the mask of the background, which ours lacks.
LEFT_OUT = "roi_heads.mask.predictor.mask_fcn_logits.weight"


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_three_steps_go_the_originals_way(golden: Path, monkeypatch, name):
    monkeypatch.setattr(jax.random, "uniform", first_come)
    model_name, origin = TRAJECTORIES[name]
    run = load_rcnn(golden, model_name)
    trajectory = load_arrays(golden / "two_stage" / f"{name}.npz")
    # The number of images has no effect on the first steps.
    train = dataclasses.replace(in_steps(run.config.train, images=100_000), learning_rate=float(trajectory["base_lr"]))
    mesh = jax.make_mesh((1,), (AXIS,), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    trained = jaxseg.models.trainable(run.config, run.variables["params"])
    optimizer = make_optimizer(train, trained)
    step = make_train_step(run.model, optimizer, trained=trained, train=train, mesh=mesh)
    state = jax.device_put(create_state(run.variables, optimizer, train), replicated(mesh))
    batch = to_global(run.batch(), mesh)

    theirs = origin.names(run.config.model, flax.traverse_util.flatten_dict({"params": run.variables["params"]}, sep="/"))
    biases = sum(path.endswith("/bias") for path, learns in flax.traverse_util.flatten_dict(trained, sep="/").items() if learns)
    assert biases == trajectory.get("n_bias_groups", biases)
    for i, (tolerance, update_tolerance) in enumerate([(1e-5, 0.01), (1e-3, 0.01), (1e-2, 0.02)]):
        expected = {key.removeprefix(f"step{i}/"): value for key, value in trajectory.items() if key.startswith(f"step{i}/")}
        state, scalars = step(state, batch)
        np.testing.assert_allclose(scalars["learning_rate"], expected["lr"][0], rtol=2e-7)
        losses = {
            ours: next(expected[their] for their in names if their in expected)
            for ours, names in LOSSES.items()
            if f"loss/{ours}" in scalars
        }
        for loss, value in losses.items():
            np.testing.assert_allclose(scalars[f"loss/{loss}"], value, rtol=tolerance, err_msg=f"{loss} of step {i}")
        params = flax.traverse_util.flatten_dict({"params": jax.device_get(state.params)}, sep="/")
        after = {their: origin.to_theirs(run.config.model, path, params[path]) for path, their in theirs.items()}
        for parameter in (key.removeprefix("param/") for key in expected if key.startswith("param/")):
            if parameter == LEFT_OUT:
                continue
            start = run.state_dict[parameter].ravel()[:64]
            update = expected[f"param/{parameter}"] - start
            rounding = 2 * np.spacing(np.abs(start).max())
            np.testing.assert_allclose(
                after[parameter].ravel()[:64] - start,
                update,
                rtol=0,
                atol=rounding + update_tolerance * np.abs(update).max(),
                err_msg=f"{parameter} after step {i}",
            )
