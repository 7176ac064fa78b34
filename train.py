"""Trains a detector: python train.py --config FILE [--workdir DIR] [--config.a.b=VALUE ...]

The same command goes on with a run that was stopped. See docs/training.md.
"""

import argparse
import logging
import sys
from pathlib import Path

from jaxseg.config import load_config, parse_config_flags
from jaxseg.training.loop import train
from jaxseg.training.sharding import initialize_distributed


def main(arguments: list[str]) -> int:
    """Runs the command; 0 when training ended or was asked to stop, 2 when the input cannot be used, 130 after two Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Trains a detector; the same command goes on with a run that was stopped."
    )
    parser.add_argument("--config", required=True, help="a file of configs/, or the config.json of a run")
    parser.add_argument("--workdir", help="run folder (default: runs/<name of the config>)")
    parser.epilog = "Any key of the config: --config.train.batch_size=16, --config.data.root=DIR, ..."
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    try:
        overrides, others = parse_config_flags(arguments)
        options = parser.parse_args(others)
        config = load_config(options.config, overrides)
        logging.getLogger("jaxseg").setLevel(logging.INFO)
        initialize_distributed()
        train(config, options.workdir or Path("runs") / config.name)
    except ValueError as error:
        if not type(error).__module__.startswith("jaxseg."):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Before the first step, or for the second time: there is nothing to save, or no wish to.
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
