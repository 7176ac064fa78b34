"""Writes a detector's weights under our names and in our layouts, as .npz or .safetensors.

    python -m jaxseg.commands.convert yolact_resnet50_54_800000.pth yolact_r50.safetensors --config configs/yolact_r50.py

Everything that takes weights takes what is written. A run folder gives its averaged parameters, if it has some.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import numpy as np

from jaxseg.commands.write_weights import write_weights
from jaxseg.config import Config
from jaxseg.weights.formats.files import replacing
from jaxseg.weights.formats.safetensors import write_safetensors


def write(path: Path, config: Config, variables: dict[str, Any]) -> None:
    """Writes `params/...` and `batch_stats/...` in the format that the file's name ends in.

    Raises:
        WeightsError: the file cannot be written.
    """
    del config
    arrays = {name: np.asarray(value) for name, value in flax.traverse_util.flatten_dict(variables, sep="/").items()}
    if path.suffix == ".safetensors":
        write_safetensors(path, arrays)
    else:
        with replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    return write_weights("jaxseg.commands.convert", __doc__, arguments, (".npz", ".safetensors"), write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
