"""Which checkpoints are kept and found, and how incomplete or foreign ones are handled."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_training import CONFIG, TinyDetector, init_tiny, params_of, train_tiny, trainable_tiny

from jaxseg.training.checkpoint import CheckpointError, Checkpoints
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.step import create_state
from jaxseg.weights.formats.run_folder import best_step, read_run

KERNEL = "['params']['head']['kernel']"


@pytest.fixture
def state():
    variables = init_tiny(TinyDetector(), CONFIG)
    return create_state(variables, make_optimizer(CONFIG.train, trainable_tiny(CONFIG, variables["params"])), CONFIG.train)


@jax.jit
def at(state, step: int):
    """Returns the state with a step's number, and with parameters that identify the step."""
    return state.replace(step=step, params=jax.tree.map(lambda leaf: leaf * 0 + step, state.params))


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def saved_run(folder: Path, state, steps, mask_ap=(), keep=2) -> Path:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(at(state, step), {"position": step})
        if step in dict(mask_ap):
            checkpoints.record_evaluation(step, dict(mask_ap)[step])
    checkpoints.close()
    return folder


def step_of(folder: Path, step) -> int:
    return int(params_of(folder, step=step)[KERNEL].flat[0])


def kept(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_the_last_and_the_best_are_kept(tmp_path, state):
    saved_run(tmp_path, state, range(1, 7), {2: 0.5, 4: 0.25})
    assert kept(tmp_path) == [2, 5, 6]
    assert [step_of(tmp_path, step) for step in ("best", "latest", 5, "5")] == [2, 6, 5, 5]


def test_the_best_is_known_after_a_restart(tmp_path, state):
    saved_run(tmp_path, state, [1, 2, 3], {1: 0.5})
    saved_run(tmp_path, state, [4, 5, 6])
    assert kept(tmp_path) == [1, 5, 6]


def test_best_is_the_latest_where_nothing_was_evaluated(tmp_path, state):
    saved_run(tmp_path, state, [1, 2])
    assert step_of(tmp_path, "best") == 2


def test_of_equals_the_later_is_best():
    assert best_step([1, 2, 3], {1: 0.5, 2: 0.5, 9: 1.0}) == 2
    assert best_step([3], {1: 0.5}) is None


def test_everything_comes_back(tmp_path, state):
    saved_run(tmp_path, state, [3])
    restored, data = Checkpoints(tmp_path, 2).restore(abstract(state))
    jax.tree.map(np.testing.assert_array_equal, restored, at(state, 3))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert data == {"position": 3}


def test_an_empty_folder_has_nothing_to_restore(tmp_path, state):
    assert Checkpoints(tmp_path, 2).restore(abstract(state)) is None


def test_variables_are_the_average_where_there_is_one(tmp_path):
    train_tiny(tmp_path, {"train.ema_decay": 0.9, "train.steps": 4})
    averaged = params_of(tmp_path)[KERNEL]
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "ema")
    assert (averaged != params_of(tmp_path)[KERNEL]).any()


def test_a_half_written_checkpoint_is_not_seen_and_goes(tmp_path, state):
    """A process that is killed while saving leaves an incomplete folder with a temporary name."""
    saved_run(tmp_path, state, [1, 2])
    half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "2", half)
    largest_file(half).unlink()
    assert step_of(tmp_path, "latest") == 2
    restored, _ = Checkpoints(tmp_path, 2).restore(abstract(state))
    assert int(restored.step) == 2
    assert kept(tmp_path) == [1, 2]


@pytest.mark.parametrize("item", ["variables", "optimizer", "data"])
def test_a_truncated_checkpoint_is_put_aside(tmp_path, state, item, caplog):
    """If a disk has lost data, the run resumes from the checkpoint before, and saves again."""
    saved_run(tmp_path, state, [1, 2])
    for path in (tmp_path / "checkpoints" / "2" / item).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    checkpoints = Checkpoints(tmp_path, 2)
    restored, data = checkpoints.restore(abstract(state))
    assert (int(restored.step), data) == (1, {"position": 1})
    assert "checkpoints/2 cannot be read" in caplog.text
    checkpoints.save(at(state, 2), {"position": 2})
    checkpoints.close()
    assert step_of(tmp_path, "latest") == 2


def test_with_no_readable_checkpoint_the_run_does_not_start_anew(tmp_path, state):
    saved_run(tmp_path, state, [1])
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "optimizer")
    with pytest.raises(CheckpointError, match=r"checkpoints/1 cannot be read .* move that folder away"):
        Checkpoints(tmp_path, 2).restore(abstract(state))


def test_a_folder_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .*checkpoints; a run folder is"):
        read_run(tmp_path)


@pytest.mark.parametrize("step", [7, "newest"])
def test_a_step_that_is_not_there_is_refused(tmp_path, state, step):
    saved_run(tmp_path, state, [1, 2])
    with pytest.raises(CheckpointError, match=f"no checkpoint {step} in .*; there are 1, 2, latest, best"):
        read_run(tmp_path, step)


def test_another_model_is_refused_by_the_names_of_its_parameters(tmp_path, state):
    saved_run(tmp_path, state, [1])
    variables = init_tiny(TinyDetector(outputs=5), CONFIG)
    other = create_state(variables, make_optimizer(CONFIG.train, trainable_tiny(CONFIG, variables["params"])), CONFIG.train)
    with pytest.raises(
        CheckpointError, match=r"does not fit the model of this configuration: params/head/bias is \(4,\) and should be \(5,\)"
    ):
        Checkpoints(tmp_path, 2).restore(abstract(other))


def test_evaluations_are_written_as_json(tmp_path, state):
    saved_run(tmp_path, state, [1, 2], {1: 0.5, 2: 0.25})
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {"1": 0.5, "2": 0.25}
