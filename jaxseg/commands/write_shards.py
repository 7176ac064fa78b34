r"""Writes a COCO folder as the TFDS dataset `coco_instances`, which is fast to read over a network.

    python -m jaxseg.commands.write_shards --config configs/yolact_r101.py --output data/shards
    python train.py --config configs/yolact_r101.py --config.data.format=tfds \
        --config.data.root=data/shards

The first command reads the COCO files of `config.data`. TensorFlow is not needed.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxseg.commands.run import run_command
from jaxseg.config import ConfigError, load_config, parse_config_flags
from jaxseg.data.sources.tfds_coco import write_shards
from jaxseg.files import is_file_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; see `run_command`."""
    return run_command(_run, arguments)


def _run(arguments: list[str]) -> None:
    overrides, others = parse_config_flags(arguments)
    flags = _parser().parse_args(others)
    if not is_file_name(flags.output):
        raise ConfigError(f"--output {flags.output!r} is no name that a folder can have.")
    where = write_shards(load_config(flags.config, overrides), flags.output)
    print(f"Wrote {where}; read it with --config.data.format=tfds --config.data.root={flags.output}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.write_shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="whose data.* names the COCO files; --config.data.root=DIR replaces a value")
    parser.add_argument("--output", required=True, help="folder for the shards")
    return parser


if __name__ == "__main__":
    sys.exit(main())
