"""Trains a detector: python train.py --config FILE [--workdir DIR] [--config.a.b=VALUE ...]

The same command resumes a run that was stopped. See docs/training.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxseg.commands.run import run_command
from jaxseg.config import load_config, parse_config_flags
from jaxseg.devices import initialize_distributed
from jaxseg.training.loop import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns 0 when training has ended or was asked to stop."""
    return run_command(_run, arguments, log_to_stdout=True)


def _run(arguments: list[str]) -> None:
    overrides, others = parse_config_flags(arguments)
    options = _parser().parse_args(others)
    config = load_config(options.config, overrides)
    initialize_distributed()
    train(config, options.workdir or Path("runs") / config.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Trains a detector; the same command goes on with a run that was stopped.",
        epilog="Any key of the config: --config.train.batch_size=16, --config.data.root=DIR, ...",
    )
    parser.add_argument("--config", required=True, help="a file of configs/ or its name, or the config.json of a run")
    parser.add_argument("--workdir", help="run folder (default: runs/<name of the config>)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
