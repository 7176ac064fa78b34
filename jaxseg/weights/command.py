"""The command line that the writers of weights share."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseg.config import Config, parse_config_flags
from jaxseg.weights.files import WeightsError
from jaxseg.weights.load import load_detector


def write_weights(
    module: str,
    description: str | None,
    arguments: Sequence[str],
    suffixes: tuple[str, ...],
    write: Callable[[Path, Config, dict[str, Any]], None],
) -> int:
    """Reads weights as one command line says, and writes them.

    Args:
        module: that is run with `python -m`.
        description: of the command.
        arguments: of the command.
        suffixes: that the output may have.
        write: gets the output, the configuration and the variables.

    Returns:
        0; or 2, with one sentence on stderr, when the user's input cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help="run folder of train.py, or a file of weights")
    parser.add_argument("output", metavar="OUT", type=Path, help=f"file to write, {' or '.join(suffixes)}")
    parser.add_argument("--config", help="a file of configs/ (default: config.json of the run folder)")
    parser.add_argument("--step", default="best", help="of a run folder: best (default), latest or a number")
    parser.epilog = "Any key of the config: --config.model.num_classes=3, ..."
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    try:
        overrides, others = parse_config_flags(list(arguments))
        options = parser.parse_args(others)
        logging.getLogger("jaxseg").setLevel(logging.INFO)
        if options.output.suffix not in suffixes:
            raise WeightsError(f"{options.output} is no name for what is written here; let it end in {' or '.join(suffixes)}.")
        config, variables = load_detector(options.source, options.config, overrides, step=options.step)
        write(options.output, config, variables)
    except ValueError as error:
        if not type(error).__module__.startswith("jaxseg."):
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"written to {options.output}")
    return 0
