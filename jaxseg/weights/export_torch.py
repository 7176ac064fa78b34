"""Writes a YOLACT as a checkpoint that dbolya/yolact loads. PyTorch is not needed.

    python -m jaxseg.weights.export_torch runs/yolact_r50 yolact_resnet50_0_800000.pth

The original takes its config from the file's name (`<config>_<epoch>_<iteration>.pth`), or from its own `--config`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import numpy as np

from jaxseg.config import Config
from jaxseg.weights.command import write_weights
from jaxseg.weights.names_yolact import DETECTOR
from jaxseg.weights.pytorch import write_zip


def state_dict(variables: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """Variables of `build_model(config)` by dbolya/yolact's names, in PyTorch's layouts.

    Its batch norms count batches, which changes nothing at their fixed momentum; the counters are 0.
    """
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    state: dict[str, np.ndarray] = {}
    for path, name in DETECTOR.names(config.model, flat).items():
        state[name] = np.ascontiguousarray(DETECTOR.to_theirs(path, np.asarray(flat[path])))
        if name.endswith(".running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return state


def write(path: Path, config: Config, variables: dict[str, Any]) -> None:
    """Writes the checkpoint.

    Raises:
        WeightsError: the file cannot be written.
    """
    write_zip(path, state_dict(variables, config))


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    return write_weights("jaxseg.weights.export_torch", __doc__, arguments, (".pth", ".pt"), write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
