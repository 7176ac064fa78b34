"""The variables in a run folder of train.py: which checkpoints there are, which detects best, and what one holds.

A run folder holds `config.json`, `checkpoints/<step>/` and `evaluations.json` (AP by step: of masks, or of boxes where
the detector has no masks). A checkpoint has the items
`variables` and `ema`, which are all that detecting needs, and others for going on with training.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg.errors import UserError

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
EVALUATIONS = "evaluations.json"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names the folder and what would be right."""


def best_step(steps: Sequence[int], average_precision: Mapping[int, float]) -> int | None:
    """The step with the highest AP, the later one of equals; None where none of them was evaluated."""
    return max((step for step in steps if step in average_precision), key=lambda step: (average_precision[step], step), default=None)


def read_evaluations(run_folder: Path) -> dict[int, float]:
    """AP by step, as far as the run was evaluated."""
    path = run_folder / EVALUATIONS
    return {int(step): float(value) for step, value in json.loads(path.read_text()).items()} if path.is_file() else {}


def read_run(run_folder: str | Path, step: str | int = "best") -> dict[str, Any]:
    """The variables of a run, to detect with: the averaged parameters if the run kept them.

    Args:
        run_folder: what `train` was given as its work folder.
        step: "best" by AP (the latest, where nothing was evaluated), "latest", or a number of steps (text will do).

    Returns:
        `{"params": ..., "batch_stats": ...}` in NumPy arrays.

    Raises:
        CheckpointError: where there is no such checkpoint.
    """
    # Orbax takes a while to import, and a file of weights needs none of it.
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
        saved = handler.metadata(chosen / item).tree
        # A template of NumPy arrays makes each process read for itself, whatever devices wrote.
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
        return handler.restore(chosen / item, args=ocp.args.StandardRestore(template))

    variables = dict(read("variables"))
    if (chosen / "ema").is_dir():
        variables["params"] = read("ema")
    return variables
