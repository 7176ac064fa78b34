"""Several devices and processes compute the same as one device, and agree on when to stop.

Sums over a batch have another order of summation, so parameters agree up to float32 rounding errors
that accumulate over the steps. The relative tolerance is 1e-5, which is a hundred times less than
the smallest change of a step here.
"""

import logging
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import Mesh
from tiny_training import params_of, run_in_own_process, train_tiny, wait_for_step

from jaxseg import devices as sharding
from jaxseg.config import ConfigError


@pytest.fixture(scope="module")
def one_device(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    finish(start(folder, devices=1))
    return folder


def start(folder: Path, *settings: str, devices: int, **environment: str) -> subprocess.Popen:
    return run_in_own_process(folder, *settings, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}", **environment)


def start_pair(folder: Path, *settings: str) -> list[subprocess.Popen]:
    """Starts two processes with two devices each, which communicate over the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start(folder, *settings, devices=2, JAX_PROCESS_ID=str(index), **common) for index in range(2)]


def finish(*processes: subprocess.Popen) -> list[str]:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


def assert_close(folder: Path, other: Path) -> None:
    ours, theirs = params_of(folder), params_of(other)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_two_devices_reach_what_one_reaches(one_device, tmp_path, two_devices: Mesh):
    train_tiny(tmp_path)
    assert_close(tmp_path, one_device)


@pytest.mark.slow
def test_eight_devices_reach_what_one_reaches(one_device, tmp_path):
    (output,) = finish(start(tmp_path, devices=8))
    assert "8 of 8 devices" in output
    assert "batch of 8 images, 1 on each device" in output
    assert_close(tmp_path, one_device)


def test_two_processes_reach_what_one_reaches(one_device, tmp_path):
    first, second = finish(*start_pair(tmp_path))
    assert "waiting for 2 processes" in first
    assert "process 0 of 2: 2 of 4 devices" in first
    assert "process 1 of 2: 2 of 4 devices" in second
    assert "batch of 8 images, 2 on each device" in first
    assert_close(tmp_path, one_device)


@pytest.mark.slow
def test_two_processes_stop_together_when_one_is_told_to_and_go_on(one_device, tmp_path):
    pair = start_pair(tmp_path, "delay=0.2")
    wait_for_step(pair[0], 1)
    # Only the second process gets the signal.
    pair[1].send_signal(signal.SIGTERM)
    first, second = finish(*pair)
    assert "stopped at step" in first
    assert "stopped at step" in second
    finish(start(tmp_path, devices=1))
    assert_close(tmp_path, one_device)


# ---- How processes find each other ----


@pytest.fixture
def joined(monkeypatch) -> list[dict]:
    """Records calls of `jax.distributed.initialize`, in an environment that names no cluster."""
    for name in (*sharding._SLURM_STEP, "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sharding, "_is_tpu_machine", lambda: False)
    calls: list[dict] = []
    monkeypatch.setattr(sharding.jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def set_environment(monkeypatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def test_a_single_machine_joins_nobody(joined):
    sharding.initialize_distributed()
    assert joined == []


def test_the_explicit_address_is_joined(joined, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="jaxseg")
    set_environment(monkeypatch, JAX_COORDINATOR_ADDRESS="host:1234", JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="3")
    sharding.initialize_distributed(timeout=7)
    assert joined == [{"initialization_timeout": 7, "coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}]
    assert "waiting for 4 processes at host:1234, 7 seconds at most; the same command has to run on each" in caplog.text


@pytest.mark.parametrize(("tasks", "calls"), [("1", 0), ("2", 1)])
def test_slurm_tasks_join_where_there_are_several(joined, monkeypatch, tasks, calls):
    set_environment(monkeypatch, **SLURM, SLURM_NTASKS=tasks)
    sharding.initialize_distributed()
    assert len(joined) == calls


def test_a_slurm_batch_script_without_srun_does_not_wait(joined, monkeypatch):
    set_environment(monkeypatch, SLURM_JOB_ID="1", SLURM_NTASKS="8", SLURM_PROCID="0", SLURM_LOCALID="0")
    sharding.initialize_distributed()
    assert joined == []


@pytest.mark.parametrize(
    ("environment", "calls"),
    [({}, 1), ({"TPU_WORKER_HOSTNAMES": "localhost"}, 0), ({"TPU_WORKER_HOSTNAMES": "a,b"}, 1), ({"TPU_PROCESS_ADDRESSES": "local"}, 0)],
)
def test_the_hosts_of_a_tpu_pod_join(joined, monkeypatch, environment, calls):
    monkeypatch.setattr(sharding, "_is_tpu_machine", lambda: True)
    set_environment(monkeypatch, **environment)
    sharding.initialize_distributed()
    assert len(joined) == calls


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID = '' is not a whole number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID = 2 is out of range; it must be 0 to 1"),
    ],
)
def test_an_incomplete_environment_is_refused(joined, monkeypatch, environment, message):
    set_environment(monkeypatch, JAX_COORDINATOR_ADDRESS="host:1", **environment)
    with pytest.raises(ConfigError, match=message):
        sharding.initialize_distributed()


@pytest.mark.slow
def test_what_is_waited_for_is_told_before_it_fails(tmp_path):
    process = start(tmp_path, "timeout=1", devices=1, JAX_COORDINATOR_ADDRESS="127.0.0.1:9", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "waiting for 2 processes at 127.0.0.1:9, 1 seconds at most; the same command has to run on each" in output
