"""Reading the variables from a run folder of train.py.

A run folder holds `config.json`, `checkpoints/<step>/` and `evaluations.json` (the AP by step, of
masks or, if the detector has none, of boxes). A checkpoint has the items `variables` and `ema`,
which suffice to run the detector, and others that resuming the training needs. Its
`checksums.json` reveals files that a disk or a copy has damaged.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.errors import UserError
from jaxseg.files import read_json

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
EVALUATIONS = "evaluations.json"
CHECKSUMS = "checksums.json"
# The number of bytes of a file that are read at a time.
_PORTION = 1 << 20


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the folder and says what to do."""


class DamagedError(Exception):
    """A file of a checkpoint differs from what was saved."""


def write_checksums(checkpoint: Path) -> None:
    """Writes the CRC-32 of every file of a checkpoint's items into the checkpoint."""
    files = sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
    sums = {path.relative_to(checkpoint).as_posix(): _checksum(path) for path in files}
    (checkpoint / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def check_files(checkpoint: Path, items: Sequence[str]) -> None:
    """Compares the files of some items with their checksums.

    Old checkpoints, which have no checksums, pass.

    Raises:
        DamagedError: a file is missing or differs.
    """
    if not (checkpoint / CHECKSUMS).is_file():
        return
    sums = read_json(checkpoint / CHECKSUMS, CheckpointError)
    for name, expected in sums.items():
        path = checkpoint / name
        if name.partition("/")[0] in items and (not path.is_file() or _checksum(path) != expected):
            raise DamagedError(f"its file {name} is not what was saved, by its checksum")


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while portion := file.read(_PORTION):
            value = zlib.crc32(portion, value)
    return value


def best_step(steps: Sequence[int], average_precision: Mapping[int, float]) -> int | None:
    """Returns the step with the highest AP, or None if no step was evaluated.

    Of several steps with the same AP, this is the last.
    """
    return max((step for step in steps if step in average_precision), key=lambda step: (average_precision[step], step), default=None)


def read_evaluations(run_folder: Path) -> dict[int, float]:
    """Returns the AP of each step at which the run was evaluated.

    Raises:
        CheckpointError: the file with the values is damaged.
    """
    path = run_folder / EVALUATIONS
    values = read_json(path, CheckpointError) if path.is_file() else {}
    good = isinstance(values, dict) and all(
        step.isdecimal() and isinstance(value, int | float) and math.isfinite(value) for step, value in values.items()
    )
    if not good:
        raise CheckpointError(f"{path} is damaged: it does not hold an AP by step; remove it, and the run is evaluated anew.")
    return {int(step): float(value) for step, value in values.items()}


def read_run(run_folder: str | Path, step: str | int = "best") -> dict[str, Any]:
    """Reads the variables of a run for evaluation: the averaged parameters, if the run kept them.

    Args:
        run_folder: the run folder, which is the work folder of `train`.
        step: "best" for the highest AP (or the latest, if the run was not evaluated), "latest", or
            the number of a step, which may be text.

    Returns:
        `{"params": ..., "batch_stats": ...}` as NumPy arrays.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    # Orbax takes long to import, and reading a file of weights does not need it.
    import orbax.checkpoint as ocp

    run_folder = Path(run_folder).absolute()
    folder = run_folder / CHECKPOINTS
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {folder}; a run folder is what train.py was given as --workdir.")
    names: dict[str, int] = {str(number): number for number in steps} | {"latest": steps[-1]}
    best = best_step(steps, read_evaluations(run_folder))
    names["best"] = steps[-1] if best is None else best
    if str(step) not in names:
        raise CheckpointError(f"There is no checkpoint {step} in {folder}; there are {', '.join(names)}.")
    chosen = folder / str(names[str(step)])
    handler = ocp.StandardCheckpointHandler()

    def read(item: str) -> Any:
        check_files(chosen, [item])
        saved = handler.metadata(chosen / item).tree
        # With a template of NumPy arrays, each process reads by itself, whichever devices wrote it.
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        return handler.restore(chosen / item, args=ocp.args.StandardRestore(template))

    try:
        variables = dict(read("variables"))
        if (chosen / "ema").is_dir():
            variables["params"] = read("ema")
    # The storage library under Orbax raises many kinds of exceptions for a truncated file.
    except Exception as error:
        others = [str(number) for number in steps if number != names[str(step)]]
        remedy = f"--step takes another, of {', '.join(others)}" if others else "there is no other one"
        raise CheckpointError(f"{chosen} cannot be read ({why(error)}); {remedy}.") from None
    return variables


def why(error: Exception) -> str:
    """Returns a short text of a storage error; a full disk is recognised in its many lines."""
    text = str(error)
    if "No space left on device" in text:
        return "there is no space left on the disk"
    first = text.splitlines()[0][:200] if text else "no reason is given"
    return first if isinstance(error, DamagedError | CheckpointError | OSError) else f"{type(error).__name__}: {first}"
