"""Early ends of a run: signals, a closed terminal, lost data, a full disk, a second run."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from test_stream import iterator
from tiny_pictures import assert_equal, take
from tiny_training import CONFIG, TinyData, programs_kept_in, records, run_in_own_process, tiny_parts, train_tiny, wait_for_step

from jaxseg.config import ConfigError, override
from jaxseg.data.sources.dataset import DataError
from jaxseg.training import checkpoint, loop
from jaxseg.training.checkpoint import CheckpointError
from jaxseg.training.interruption import Interrupted, Interruption

STEPS = CONFIG.train.steps
TESTS = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(tmp_path_factory):
    """Shares the compiled step between runs, most of which have the same one."""
    with programs_kept_in(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO, logger="jaxseg")


@pytest.fixture
def _default_hangup():
    """Restores the default action of SIGHUP, because nohup makes all children ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


# ---- Worker processes ----

_WORKING = """
import multiprocessing, os, time
from test_stream import iterator
if __name__ == "__main__":
    batches = iterator(workers=1)
    next(batches)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


def test_worker_processes_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "working.py"
    script.write_text(_WORKING)
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    before = set(os.listdir("/dev/shm"))
    run = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 1
    assert all(map(alive, workers))
    ours = {name for name in os.listdir("/dev/shm") if name not in before}
    run.kill()
    run.communicate()
    assert wait_until(lambda: not any(map(alive, workers)))
    # The run of another test may create and remove such files at the same time.
    assert wait_until(lambda: not ours & set(os.listdir("/dev/shm")))


@pytest.fixture
def workers():
    """Returns a function that finds the worker processes that a test has started."""
    before = set(multiprocessing.active_children())
    return lambda: [process for process in multiprocessing.active_children() if process not in before]


@pytest.mark.slow
def test_a_worker_process_that_is_killed_is_started_again_and_no_batch_is_lost(caplog, workers):
    reference = take(iterator(workers=0), 24)
    running = iterator(workers=2)
    batches = [next(running) for _ in range(2)]
    os.kill(workers()[0].pid, signal.SIGKILL)
    assert_equal(batches + take(running, 22), reference)
    assert "the worker processes of the data start again at the same batch" in caplog.text


def test_worker_processes_that_keep_dying_end_the_run_in_a_sentence(monkeypatch):
    running = iterator(workers=2)
    error = RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs above.")

    def dies():
        raise error

    monkeypatch.setattr(running, "_first_element", dies)
    with pytest.raises(DataError, match=r"ended 3 times in a row \(.* exit code -9\), .* try fewer of them than data.workers = 2"):
        next(running)


def test_worker_processes_do_not_hear_what_their_group_is_sent(workers):
    """These signals reach the whole process group, including workers that are just starting.

    They come from Ctrl-C, a closed terminal or the end of a job.
    """
    running = iterator(workers=1)
    reference = take(iterator(workers=0), 6)
    batches = [next(running)]
    (worker,) = workers()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(worker.pid, number)
    batches += [next(running) for _ in range(4)]
    assert worker.is_alive()
    assert_equal(batches + take(running, 1), reference)


# ---- Signals ----


@pytest.mark.usefixtures("_default_hangup")
def test_a_closed_terminal_saves_and_leaves(tmp_path):
    """The terminal may send the signal twice. A second run is refused while the first one lasts."""
    process = run_in_own_process(tmp_path, "delay=0.2")
    wait_for_step(process, 2)
    with pytest.raises(ConfigError, match=rf"in use: process {process.pid} on .* trains there since 20.*; wait for its end, or choose"):
        train_tiny(tmp_path, {"train.learning_rate": 0.01})
    assert json.loads((tmp_path / "config.json").read_text())["train"]["learning_rate"] == CONFIG.train.learning_rate
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "SIGHUP: saving and leaving" in output
    assert "Traceback" not in output
    assert checkpoints(tmp_path)[-1] in range(2, STEPS)


def test_what_is_ignored_stays_ignored():
    """nohup starts a program with such ignored signals."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.wanted
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_that_changes_nothing_is_broken_off_at_once():
    with Interruption() as interruption:
        with pytest.raises(Interrupted), interruption.breaking_off():
            signal.raise_signal(signal.SIGINT)
        assert interruption.wanted
        with pytest.raises(Interrupted), interruption.breaking_off():
            raise AssertionError("a signal had come before")


class LongValidation:
    """A validation that interrupts itself and then takes very long; a second one ends at once."""

    def __init__(self, seconds: float):
        self.seconds, self.asked = seconds, []

    def __call__(self, step, variables):
        self.asked.append(step)
        if len(self.asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(self.seconds)
        return {"val/mask/AP": 0.5, "val/box/AP": 0.5}, {}


@pytest.mark.parametrize("evaluated", [4, STEPS])
def test_ctrl_c_during_an_evaluation_leaves_within_seconds_and_it_is_made_up_for(tmp_path, monkeypatch, evaluated, caplog):
    validation = LongValidation(60)
    monkeypatch.setattr(loop, "Validation", lambda *_, **__: validation)
    started = time.monotonic()
    train_tiny(tmp_path, {"train.evaluate_every": evaluated})
    assert time.monotonic() - started < 30
    assert f"stopped at step {evaluated} of {STEPS}" in caplog.text
    assert not (tmp_path / "evaluations.json").exists()
    train_tiny(tmp_path, {"train.evaluate_every": evaluated})
    assert validation.asked == [evaluated, *range(evaluated, STEPS + 1, evaluated)]
    assert json.loads((tmp_path / "evaluations.json").read_text())[str(evaluated)] == 0.5


# ---- Lost data ----


def test_data_that_cannot_go_on_end_the_run_with_a_checkpoint(tmp_path, monkeypatch, caplog):
    class Lost(TinyData):
        def __next__(self):
            if self.position == 6:
                raise DataError("None of 100 images in a row can be used.")
            return super().__next__()

    with tiny_parts(Lost()), pytest.raises(DataError, match="None of 100 images"):
        loop.train(CONFIG, tmp_path)
    assert checkpoints(tmp_path)[-1] == 6
    assert f"saved at step 6 of {STEPS}" in caplog.text
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 7))


# ---- The disk ----


def test_a_full_disk_is_told_in_one_sentence_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", ("total", "used", "free"))(10_000, 9_900, 100)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    sentence = r"checkpoint of step 4 cannot be written to .* \(there is no space left on the disk: it takes .* and 100 bytes are free\)"
    with pytest.raises(CheckpointError, match=sentence):
        train_tiny(tmp_path)
    assert checkpoints(tmp_path) == []


def test_a_disk_that_fills_up_in_the_background_is_told_in_one_sentence(tmp_path, monkeypatch):
    def write_checksums(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_checksums", write_checksums)
    with pytest.raises(CheckpointError, match=r"step 4 cannot be written .* \(there is no space left on the disk\)"):
        train_tiny(tmp_path)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"--workdir .* cannot be made a folder \(.*\); choose another"):
            train_tiny(workdir)
    with pytest.raises(ConfigError, match=r"--workdir '.*' is no name that a folder can have"):
        train_tiny(Path(f"{tmp_path}/a\0b"))


# ---- Two runs in one folder ----


_LOCKING = """
import sys, time
from pathlib import Path
from jaxseg.training.run_lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_file_that_a_killed_run_leaves_does_not_block_another(tmp_path):
    """`test_a_closed_terminal_saves_and_leaves` tries a second run while the first one lasts."""
    first = subprocess.Popen([sys.executable, "-c", _LOCKING, str(tmp_path)], cwd=TESTS.parent, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "locked\n"
    with pytest.raises(ConfigError, match=rf"in use: process {first.pid} on "):
        train_tiny(tmp_path)
    first.kill()
    first.communicate()
    assert (tmp_path / "train.lock").exists()
    train_tiny(tmp_path)
    assert [record["step"] for record in records(tmp_path)] == list(range(1, STEPS + 1))
    assert not (tmp_path / "train.lock").exists()


# ---- The log of a run ----


def test_compiling_is_told_and_so_are_the_first_losses(tmp_path, caplog):
    train_tiny(tmp_path, {"train.log_every": 5, "train.decay_steps": ()})
    messages = [record.message for record in caplog.records]
    compiling = next(i for i, message in enumerate(messages) if message.startswith("compiling the training step for images of 16 x 16"))
    assert messages[compiling + 1].startswith("compiled in ")
    assert [message.split("/")[0].strip() for message in messages if " || T: " in message or " | T: " in message] == ["1", "5", "10", "12"]
    assert any("constant" in message for message in messages)
    assert [record["step"] for record in records(tmp_path)] == [5, 10, 12]


def test_the_start_shows_what_differs_from_the_defaults(tmp_path, caplog):
    train_tiny(tmp_path)
    shown = next(record.message for record in caplog.records if record.message.startswith("config.name"))
    assert "config.train.learning_rate = 0.05" in shown
    assert "config.train.momentum" not in shown
    assert "keys are in config.json of the run folder" in shown


def test_skipping_what_does_not_fit_is_for_the_weights_of_the_start_only(tmp_path, caplog):
    train_tiny(tmp_path, {"init.skip_mismatched": True, "train.steps": 4})
    assert json.loads((tmp_path / "config.json").read_text())["init"]["skip_mismatched"] is False
    train_tiny(tmp_path, {"init.skip_mismatched": True, "train.steps": 8})
    assert "skip_mismatched: " not in caplog.text.split("goes on from step 4")[1]


def test_times_are_those_of_steps(tmp_path):
    """Times are never 0 and never include compilation, with two shapes and after a checkpoint."""
    train_tiny(tmp_path, {"train.checkpoint_every": 8}, delay=0.05, portraits=(1, 3, 4))
    times = [record["step_time"] for record in records(tmp_path) if "step_time" in record]
    assert len(times) >= 8
    assert min(times) > 0.04
    assert np.median(times) < 1


def test_a_batch_that_no_machine_holds_is_refused_at_once(tmp_path):
    sentence = r"batch of 1000000000 images \(config.train.batch_size\) would take .* of memory, .*; use fewer or smaller ones"
    with tiny_parts(TinyData()), pytest.raises(ConfigError, match=sentence):
        loop.train(override(CONFIG, {"train.batch_size": 10**9}), tmp_path)
    assert not list(tmp_path.iterdir())
