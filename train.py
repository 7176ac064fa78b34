"""Trains a detector: python train.py --config FILE [--workdir DIR] [--config.a.b=VALUE ...]

The same command goes on with a run that was stopped. See docs/training.md.
"""

import argparse
import sys
from pathlib import Path

from jaxseg.commands.run import run_command
from jaxseg.config import load_config, parse_config_flags
from jaxseg.devices import initialize_distributed
from jaxseg.training.loop import train


def main(arguments: list[str]) -> int:
    """Runs the command; 0 when training ended or was asked to stop, else what `run_command` says."""
    return run_command(lambda: _run(arguments), log_to_stdout=True)


def _run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="train.py", description="Trains a detector; the same command goes on with a run that was stopped."
    )
    parser.add_argument("--config", required=True, help="a file of configs/, or the config.json of a run")
    parser.add_argument("--workdir", help="run folder (default: runs/<name of the config>)")
    parser.epilog = "Any key of the config: --config.train.batch_size=16, --config.data.root=DIR, ..."
    overrides, others = parse_config_flags(arguments)
    options = parser.parse_args(others)
    config = load_config(options.config, overrides)
    initialize_distributed()
    train(config, options.workdir or Path("runs") / config.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
