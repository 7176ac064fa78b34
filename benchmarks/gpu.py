"""Runs everything that needs a GPU in less than ten minutes: kernels, whole models and tests.

    python benchmarks/gpu.py                       # all parts; jaxseg has to be importable
    python benchmarks/gpu.py --parts models tests  # some of them
    python benchmarks/gpu.py --seconds 540

The parts run one after the other, each in a separate process with its own time limit, so that a
part that fails or hangs does not take the time of the others. Their output is also written to
gpu.log in the folder that the environment variable OUT names, or in the current folder. The last
lines say how each part ended. The exit code is 1 if any part failed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, TextIO

REPOSITORY = Path(__file__).parent.parent
VERSIONS = """
import importlib.metadata, platform
print("python", platform.python_version())
for name in ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "optax", "numpy", "torch", "torchvision", "triton"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "is not there")
import jax
print(jax.devices(), jax.devices()[0].device_kind, getattr(jax.devices()[0], "compute_capability", ""))
from jaxseg.ops.implementation import missing_gpu
print("kernels run here" if missing_gpu() is None else f"kernels do not run here: {missing_gpu()}")
"""


class Job(NamedTuple):
    """A command that is a part, and its time limit in seconds."""

    part: str
    command: list[str]
    limit: float
    # The platforms for JAX; if it is empty, JAX chooses.
    platforms: str = ""


def script(name: str, *arguments: str) -> list[str]:
    return [sys.executable, f"benchmarks/{name}.py", *arguments]


TESTS = [f"tests/test_{name}.py" for name in ("nms_kernel", "roi_align_kernel", "nms", "roi_align")]
# The most informative parts come first.
JOBS = (
    Job("versions", ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem", "--format=csv"], 20),
    Job("versions", [sys.executable, "-c", VERSIONS], 60),
    Job("kernels", script("kernels", "--only", "train_boxes", "train_masks", "--seconds", "100"), 140),
    Job("kernels", script("kernels", "--only", "fast", "proposals", "cross", "detections", "--seconds", "80"), 120),
    Job("models", script("train_step", "--config", "configs/mask_rcnn_r50_fpn_1x.py", "--rounds", "3"), 150),
    Job("models", script("train_step", "--config", "configs/yolact_r50.py", "--rounds", "3"), 120),
    Job("models", script("detect_rcnn", "--batch_sizes", "1", "--repetitions", "20"), 90),
    Job("models", script("detect", "--config", "configs/yolact_r50.py", "--config.model.detection.score_threshold=0"), 90),
    Job("others", script("kernels", "--only", "detect_", "train_c4", "train_dilated", "--seconds", "80"), 120),
    # The platforms are given, because the tests choose the CPU by default.
    Job("tests", [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *TESTS], 120, platforms="cuda,cpu"),
)


def run(job: Job, seconds: float, log: TextIO) -> str:
    """Runs a job and returns how it ended; its output goes to the terminal and to the log."""
    title = " ".join(job.command[:1] if job.command[1] == "-c" else job.command).replace(sys.executable, "python")
    started = time.perf_counter()
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))),
    }
    if job.platforms:
        environment["JAX_PLATFORMS"] = job.platforms
    say(f"\n==== {job.part}: {title}, {min(job.limit, seconds):.0f} s at most\n", log)
    # `timeout` enforces the limit, because it also ends a command that never writes a line.
    command = ["timeout", "--kill-after=5", f"{min(job.limit, seconds):.0f}", *job.command]
    try:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        say(f"{error}\n", log)
        return f"{title}: did not start, {error}"
    assert process.stdout is not None
    for line in process.stdout:
        say(line, log)
    code = process.wait()
    ending = {0: "well", 124: "out of time", 137: "out of time"}.get(code, f"with exit code {code}")
    return f"{title}: ended {ending} after {time.perf_counter() - started:.0f} s"


def say(text: str, log: TextIO) -> None:
    for file in (sys.stdout, log):
        file.write(text)
        file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = list(dict.fromkeys(job.part for job in JOBS))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--seconds", type=float, default=540.0, help="for all of it")
    options = parser.parse_args()
    started = time.perf_counter()
    endings = []
    with (Path(os.environ.get("OUT", ".")) / "gpu.log").open("w") as log:
        for job in (job for job in JOBS if job.part in options.parts):
            left = options.seconds - (time.perf_counter() - started)
            endings.append(run(job, left, log) if left > 15 else f"{' '.join(job.command[1:])}: no time left")
        say("\n==== all parts\n" + "\n".join(endings) + "\n", log)
    if not all(": ended well" in ending for ending in endings):
        sys.exit(1)


if __name__ == "__main__":
    main()
