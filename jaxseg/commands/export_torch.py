"""Writes a detector as a checkpoint that its original loads: dbolya/yolact, torchvision, detectron2, mmdetection or
maskrcnn-benchmark, as the configuration's conventions say. PyTorch is not needed.

    python -m jaxseg.commands.export_torch runs/yolact_r50 yolact_resnet50_0_800000.pth

dbolya/yolact takes its config from the file's name (`<config>_<epoch>_<iteration>.pth`), or from its own `--config`.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import numpy as np

from jaxseg.commands.write_weights import write_weights
from jaxseg.config import Config
from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.pytorch import write_zip
from jaxseg.weights.names.registry import original


def state_dict(variables: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
    """Variables of `build_model(config)` by their original's names, in its layouts.

    Where batch norms count batches, which changes nothing at their fixed momentum, the counters are 0; so are outputs for
    the background that nobody looks at.

    Raises:
        WeightsError: nobody's detectors have the conventions of the configuration.
    """
    origin = original(config.model)
    if origin is None:
        raise WeightsError(f"{config.name} mixes conventions, so no original would detect as it does; write .npz or .safetensors instead.")
    flat = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    state: dict[str, np.ndarray] = {}
    for path, name in origin.names(config.model, flat).items():
        state[name] = np.ascontiguousarray(origin.to_theirs(config.model, path, np.asarray(flat[path])))
        if origin.counts_batches and name.endswith(".running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.array(0, np.int64)
    return state


def write(path: Path, config: Config, variables: dict[str, Any]) -> None:
    """Writes the checkpoint.

    Raises:
        WeightsError: the file cannot be written, or no original is like the detector.
    """
    write_zip(path, state_dict(variables, config))


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    return write_weights("jaxseg.commands.export_torch", __doc__, arguments, (".pth", ".pt"), write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
