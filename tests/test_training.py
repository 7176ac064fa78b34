"""Whole runs of a tiny detector: their files, interruptions, steps that fail, and user errors."""

import itertools
import json
import logging
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_training
from compilation import compiled_programs
from tiny_training import (
    CONFIG,
    TinyData,
    TinyDetector,
    params_of,
    programs_kept_in,
    records,
    run_in_own_process,
    tiny_parts,
    train_tiny,
    wait_for_step,
)

from jaxseg.config import MIRROR_ONLY, ConfigError, load_config, override
from jaxseg.data.sources.shapes import ensure_shapes
from jaxseg.models import RcnnConfig
from jaxseg.training import loop
from jaxseg.training.checkpoint import CheckpointError
from jaxseg.training.loop import TrainingError
from jaxseg.training.metrics import MovingAverages
from jaxseg.weights.formats.run_folder import read_run

STEPS = CONFIG.train.steps


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory) -> Iterator[None]:
    """Shares the compiled step between runs, most of which have the same one.

    A run in a separate process compiles its own step.
    """
    with programs_kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Returns the folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    train_tiny(folder)
    return folder


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO, logger="jaxseg")


class GroupNormDetector(TinyDetector):
    """A detector that has parameters but no statistics."""

    def setup(self):
        super().setup()
        self.gn1 = nn.GroupNorm(2)

    def __call__(self, images, train=False):
        return self.head(nn.relu(self.gn1(self.convolution(images.astype(jnp.float32) / 255))).mean((1, 2)))


def assert_same_variables(folder: Path, other: Path) -> None:
    ours, theirs = params_of(folder), params_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


# ---- A run ----


def test_a_run_writes_its_folder(straight):
    assert {"config.json", "checkpoints", "metrics.jsonl"} <= {path.name for path in straight.iterdir()}
    assert list(straight.glob("events.out.tfevents.*"))
    assert load_config(straight / "config.json") == CONFIG
    lines = records(straight)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert {"loss/box", "loss/class", "loss/total", "grad_norm", "learning_rate", "step_time", "data_time"} <= lines[-1].keys()
    assert lines[-1]["loss/total"] < lines[0]["loss/total"]
    assert [lines[i]["learning_rate"] for i in (0, 3, 8)] == pytest.approx([0.01, 0.05, 0.005])


def test_start_up_lines_tell_what_runs(tmp_path, caplog):
    train_tiny(tmp_path, {"train.batch_size": "4", "train.steps": "2"})
    for fact in (
        "config.train.batch_size = 4",
        f"run folder {tmp_path}",
        "process 0 of 1: 2 of 2 devices",
        "batch of 4 images, 2 on each device",
        "40 training images",
        "140 parameters, of which 140 learn",
        "rate 0.025, 4 steps, times 0.1 at 16; scaled from 0.05 and 2 for a batch of 4 instead of 8",
        "starts from random weights",
    ):
        assert fact in caplog.text


def test_epochs_are_passes_over_the_images(tmp_path, caplog):
    train_tiny(tmp_path, {"train.epochs": 3, "train.decay_epochs": (1,), "train.batch_size": 16, "train.warmup_factor": 0.5})
    assert "rate 0.1, 9 steps (3 epochs), times 0.1 at 3; scaled from 0.05 for a batch of 16 instead of 8" in caplog.text
    lines = records(tmp_path)
    assert [lines[i]["learning_rate"] for i in (0, 2, 3)] == pytest.approx([0.05, 0.05 + 0.05 * 2 / 3, 0.01])
    assert [line["step"] for line in lines] == list(range(1, 10))


def test_metrics_are_the_last_averages(straight, tmp_path):
    metrics = train_tiny(tmp_path)
    assert metrics["loss/total"] == records(tmp_path)[-1]["loss/total"] == records(straight)[-1]["loss/total"]


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config.train.batch_size = 7 cannot be split evenly over 2 devices; .* such as 8"):
        train_tiny(tmp_path, {"train.batch_size": 7})


@pytest.mark.parametrize(("portraits", "programs"), [((), 1), ((3, 4, 5, 8, 10), 2)])
def test_a_run_compiles_its_step_once_a_shape(tmp_path, portraits, programs):
    with compiled_programs() as names:
        train_tiny(tmp_path, portraits=portraits)
    assert names["train_step"] == programs


def test_times_leave_out_the_steps_that_compile(tmp_path, monkeypatch):
    """Left out are the first step of each shape, and the steps on the devices when it is compiled.

    The wait for the devices before a checkpoint is also left out.
    """
    averaged = []
    add = MovingAverages.add

    def noted(self, values):
        averaged.append("step_time" in values)
        assert averaged[-1] == ("data_time" in values)
        add(self, values)

    monkeypatch.setattr(MovingAverages, "add", noted)
    train_tiny(tmp_path, {"train.checkpoint_every": 10}, portraits=(5, 6, 8))
    first_shape, second_shape = [False, True, True], [False, False, False, True, True]
    assert averaged == [*first_shape, *second_shape, False, False, False, False]


# ---- Resuming ----


@pytest.mark.parametrize("interrupted", [5, 8])
def test_a_stopped_run_goes_on_bit_by_bit(straight, tmp_path, interrupted, caplog):
    """The run is stopped between two checkpoints, or while one is being written."""
    train_tiny(tmp_path, interrupted=interrupted)
    assert f"stopped at step {interrupted + 1} of {STEPS}" in caplog.text
    train_tiny(tmp_path)
    assert f"goes on from step {interrupted + 1} of {STEPS}" in caplog.text
    assert_same_variables(tmp_path, straight)
    assert [line["step"] for line in records(tmp_path)] == list(range(1, STEPS + 1))


def test_a_signal_that_ended_the_data_workers_too_still_saves(straight, tmp_path, caplog):
    train_tiny(tmp_path, interrupted=5, lost=True)
    assert f"stopped at step 5 of {STEPS}" in caplog.text
    train_tiny(tmp_path)
    assert_same_variables(tmp_path, straight)


def test_the_average_goes_on_bit_by_bit(tmp_path):
    average = {"train.ema_decay": 0.9}
    train_tiny(tmp_path / "straight", average)
    train_tiny(tmp_path / "stopped", average, interrupted=5)
    train_tiny(tmp_path / "stopped", average)
    assert_same_variables(tmp_path / "stopped", tmp_path / "straight")


def test_a_finished_run_has_nothing_to_do(straight, caplog):
    before = params_of(straight)
    train_tiny(straight)
    assert f"goes on from step {STEPS} of {STEPS}" in caplog.text
    np.testing.assert_array_equal(params_of(straight)["['params']['head']['kernel']"], before["['params']['head']['kernel']"])


def test_a_longer_schedule_and_another_rate_are_allowed_and_told(tmp_path, caplog):
    train_tiny(tmp_path, {"train.steps": 4})
    train_tiny(tmp_path, {"train.steps": 6, "train.learning_rate": 0.02})
    assert "differs from the run saved here: train.steps: 4 -> 6" in caplog.text
    assert "differs from the run saved here: train.learning_rate: 0.05 -> 0.02" in caplog.text
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["learning_rate"] == pytest.approx(0.02)
    assert load_config(tmp_path / "config.json").train.steps == 6


def test_clipping_and_other_decays_are_allowed(tmp_path):
    train_tiny(tmp_path, {"train.steps": 4})
    train_tiny(tmp_path, {"train.steps": 6, "train.clip_norm": 10.0, "train.decay_biases": False, "train.bias_rate_factor": 2.0})
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_an_average_can_be_switched_on_and_off(tmp_path, caplog):
    train_tiny(tmp_path, {"train.steps": 4})
    train_tiny(tmp_path, {"train.steps": 8, "train.ema_decay": 0.5})
    assert "the saved run kept no moving average: it starts from the parameters of step 4" in caplog.text
    train_tiny(tmp_path, {"train.steps": 12})
    assert "the saved run's moving average is left behind" in caplog.text


def test_another_model_or_dataset_in_the_folder_is_refused(straight):
    with pytest.raises(ConfigError, match=r"another model.fpn_channels and data.train_images; use the saved values"):
        train_tiny(straight, {"model.fpn_channels": 8, "data.train_images": "elsewhere"})
    assert load_config(straight / "config.json") == CONFIG


def test_another_kind_of_model_in_the_folder_is_refused(straight):
    with pytest.raises(ConfigError, match=r"holds a run with another model.kind; use the saved values"):
        train_tiny(straight, {"model": RcnnConfig(num_classes=2), "data.augment": MIRROR_ONLY})


def test_thresholds_of_another_kind_of_model_may_change(tmp_path, caplog):
    rcnn = {"model": RcnnConfig(num_classes=2), "data.augment": MIRROR_ONLY}
    train_tiny(tmp_path, rcnn | {"train.steps": 4})
    train_tiny(tmp_path, rcnn | {"train.steps": 4, "model.roi.score_threshold": 0.5, "model.rpn.post_nms_test": 50})
    assert "differs from the run saved here: model.roi.score_threshold: 0.05 -> 0.5" in caplog.text
    with pytest.raises(ConfigError, match=r"another model.roi.positive_iou;"):
        train_tiny(tmp_path, rcnn | {"model.roi.positive_iou": 0.6})


def test_a_detector_without_running_statistics_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_training, "TinyDetector", GroupNormDetector)
    train_tiny(tmp_path / "straight")
    train_tiny(tmp_path / "stopped", interrupted=5)
    train_tiny(tmp_path / "stopped")
    assert_same_variables(tmp_path / "stopped", tmp_path / "straight")


def test_another_optimizer_is_refused_and_leaves_the_folder_alone(straight):
    with pytest.raises(CheckpointError, match="does not fit the optimizer of this configuration"):
        train_tiny(straight, {"train.optimizer": "adamw"})
    assert load_config(straight / "config.json") == CONFIG


def test_the_data_may_move_and_the_precision_change(straight):
    with tiny_parts(TinyData()):
        moved = override(CONFIG, {"data.root": "elsewhere", "data.workers": 0, "model.dtype": "float32", "model.detection.top_k": 7})
        loop.train(moved, straight)


# `test_a_closed_terminal_saves_and_leaves` has a process of its own, and
# `test_a_stopped_run_goes_on_bit_by_bit` gets SIGTERM in this one.
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_cleanly(straight, tmp_path, number):
    process = run_in_own_process(tmp_path, "delay=0.2")
    wait_for_step(process, 2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopped at step" in output
    assert "Traceback" not in output
    train_tiny(tmp_path)
    assert_same_variables(tmp_path, straight)


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tmp_path):
    """A run is killed during its start, its steps and its saves, until one reaches the end."""
    settings = ["delay=0.01", "train.steps=120", "train.checkpoint_every=3", "train.decay_steps=(60,)"]
    train_tiny(tmp_path / "straight", {"train.steps": 120, "train.checkpoint_every": 3, "train.decay_steps": (60,)})
    rng = random.Random(0)
    for attempt in itertools.count():
        process = run_in_own_process(tmp_path / "killed", *settings)
        if attempt < 4:
            # The delay starts at a line of the output, so that it does not depend on the machine.
            next(line for line in process.stdout if "starts from random weights" in line or "goes on from step" in line)
            time.sleep(rng.uniform(0, 1.5))
            process.kill()
            process.communicate()
            continue
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        break
    assert_same_variables(tmp_path / "killed", tmp_path / "straight")
    assert [line["step"] for line in records(tmp_path / "killed")] == list(range(1, 121))


# ---- Evaluation during training ----


class KnownValidation:
    """A replacement for `Validation` with a given mask AP for each step, which records its calls.

    The box AP has the opposite order; without masks it is the only AP.
    """

    mask_ap: ClassVar[dict[int, float]] = {4: 0.1, 8: 0.3, 12: 0.2}
    masks = True

    def __init__(self, *_):
        self.asked = []

    def __call__(self, step, variables):
        self.asked.append(step)
        metrics = {"val/mask/AP": self.mask_ap[step]} if self.masks else {}
        return metrics | {"val/box/AP": 1 - self.mask_ap[step], "val/loss/total": 1.0}, {"7": np.zeros((4, 5, 3), np.uint8)}


EVALUATED = {"train.evaluate_every": 4, "train.checkpoint_every": 3, "train.keep_checkpoints": 1}


@pytest.fixture
def validation(monkeypatch) -> KnownValidation:
    known = KnownValidation()
    monkeypatch.setattr(loop, "Validation", lambda *_, **__: known)
    return known


def test_evaluations_are_recorded_and_the_best_checkpoint_stays(tmp_path, validation):
    metrics = train_tiny(tmp_path, EVALUATED)
    assert validation.asked == [4, 8, 12]
    assert metrics["val/mask/AP"] == 0.2
    assert [line["val/mask/AP"] for line in records(tmp_path) if "val/mask/AP" in line] == [0.1, 0.3, 0.2]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "8"]


def test_a_detector_without_masks_is_best_by_its_boxes(tmp_path, validation):
    validation.masks = False
    train_tiny(tmp_path, EVALUATED)
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {"4": 0.9, "8": 0.7, "12": 0.8}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "4"]


def test_an_evaluation_that_was_missed_is_made_up_for(tmp_path, validation):
    train_tiny(tmp_path, EVALUATED, interrupted=3)
    assert validation.asked == []
    train_tiny(tmp_path, EVALUATED)
    assert validation.asked == [4, 8, 12]
    train_tiny(tmp_path, EVALUATED)
    assert validation.asked == [4, 8, 12]


def test_an_evaluation_whose_checkpoint_was_lost_is_made_again(tmp_path, validation):
    train_tiny(tmp_path, EVALUATED)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    train_tiny(tmp_path, EVALUATED)
    assert validation.asked == [4, 8, 12, 12]
    assert [line["val/mask/AP"] for line in records(tmp_path) if "val/mask/AP" in line] == [0.1, 0.3, 0.2]


# ---- Runs with the real parts ----

REAL = {
    "data.workers": 1,
    "model.image_size": 64,
    "model.backbone.width": 4,
    "model.fpn_channels": 8,
    "model.head_channels": 8,
    "model.prototype_channels": 8,
    "model.num_prototypes": 4,
    "train.schedule": "steps",
    "train.decay_steps": (),
    "train.warmup_steps": 0,
    "train.learning_rate": 1e-3,
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "train.evaluate_images": 12,
    "train.draw_images": 2,
    "eval.batch_size": 8,
}


@pytest.mark.slow
def test_a_detector_on_shapes_goes_on_bit_by_bit_and_is_evaluated(tmp_path):
    """The run has shapes on disk, worker processes, YOLACT, validation and checkpoints."""
    ensure_shapes(tmp_path / "shapes", train=24, val=12)
    config = override(load_config("configs/demo_shapes.py"), REAL | {"data.root": str(tmp_path / "shapes")})
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    metrics = loop.train(override(config, {"train.evaluate_every": 4}), straight)
    assert 0 <= metrics["val/mask/AP"] <= 1
    assert metrics["val/loss/total"] == pytest.approx(sum(metrics[f"val/loss/{name}"] for name in ("box", "class", "mask", "semantic")))
    assert sorted(path.name for path in (straight / "pictures").iterdir()) == ["0000004_1.jpg", "0000004_2.jpg"]

    # This is the state after a kill; the resumed run has no workers.
    shutil.copytree(straight, stopped)
    shutil.rmtree(stopped / "checkpoints" / "4")
    loop.train(override(config, {"data.workers": 0}), stopped)
    ours, theirs = (read_run(folder, "latest") for folder in (stopped, straight))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ---- Steps that are not finite ----


def test_a_bad_batch_is_skipped_and_named(tmp_path, caplog):
    train_tiny(tmp_path, poisoned=(1,))
    assert "step 2 skipped: a loss or gradient is not finite; image ids of the batch: 1008 (1008.jpg), 1009 (1009.jpg)" in caplog.text
    lines = records(tmp_path)
    assert len(lines) == STEPS
    assert all(np.isfinite(value).all() for value in params_of(tmp_path).values())
    assert all(value is not None for value in lines[-1].values())


def test_a_run_of_bad_batches_ends_training(tmp_path):
    with pytest.raises(TrainingError, match=r"ended at step 5: the last 3 steps .* try a lower train.learning_rate"):
        train_tiny(tmp_path, {"train.max_skipped_steps": 3}, poisoned=(0, 2, 3, 4))
