"""Writing variables, under our own names or under the names and in the layouts of an original."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import numpy as np

from jaxseg.config import Config
from jaxseg.weights.formats.files import WeightsError, replacing
from jaxseg.weights.formats.pytorch import write_zip
from jaxseg.weights.formats.safetensors import write_safetensors
from jaxseg.weights.names.registry import original


def write_variables(path: Path, variables: Mapping[str, Any]) -> None:
    """Writes variables under their own names, `params/...` and `batch_stats/...`.

    Args:
        path: the file; the format is safetensors if the name ends in .safetensors, otherwise .npz.
        variables: `{"params": ..., "batch_stats": ...}`.

    Raises:
        WeightsError: the file cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in _flat(variables).items()}
    if path.suffix == ".safetensors":
        write_safetensors(path, arrays)
    else:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def write_state_dict(path: Path, config: Config, variables: Mapping[str, Any]) -> None:
    """Writes a PyTorch checkpoint that the detector's original can load; see `state_dict`.

    Raises:
        WeightsError: the file cannot be written, or no original has these conventions.
    """
    write_zip(path, state_dict(variables, config))


def state_dict(variables: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """Returns the variables of a detector under the names of its original, in its layouts.

    The batch counters of batch norms are 0, because they have no effect at a fixed momentum.
    Outputs for the background that the original does not use are 0, too.

    Args:
        variables: the variables of `build_model(config)`.
        config: the configuration of the detector.

    Raises:
        WeightsError: no original has the configuration's conventions.
    """
    table = original(config.model)
    if table is None:
        raise WeightsError(f"{config.name} mixes conventions, so it has no equivalent original; write .npz or .safetensors instead.")
    flat = _flat(variables)
    state: dict[str, np.ndarray] = {}
    for path, name in table.names(config.model, flat).items():
        state[name] = np.ascontiguousarray(table.to_theirs(config.model, path, np.asarray(flat[path])))
        if table.counts_batches and name.endswith(".running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return state


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")
