"""The command line that the two commands for writing weights share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxseg.commands.run import run_command
from jaxseg.config import Config, parse_config_flags
from jaxseg.files import is_file_name
from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.load import load_detector


def write_weights(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    suffixes: tuple[str, ...],
    write: Callable[[Path, Config, dict[str, Any]], None],
) -> int:
    """Reads the weights that a command line names, and writes them in another format.

    Args:
        parser: the command's parser, to which the arguments that both commands have are added.
        arguments: the arguments of the command; None takes those of the process.
        suffixes: the file name extensions that the output may have.
        write: the function that writes; it is called with the path of the output, the
            configuration and the variables.

    Returns:
        0, or 2 with one sentence on stderr if the user's input cannot be used.
    """
    parser.add_argument("source", metavar="IN", help="run folder of train.py, or a file of weights")
    parser.add_argument("output", metavar="OUT", type=Path, help=f"file to write, {' or '.join(suffixes)}")
    parser.add_argument("--config", help="a file of configs/ or its name (default: config.json of the run folder)")
    parser.add_argument("--step", default="best", help="of a run folder: best (default), latest or a number")
    parser.epilog = "Any key of the config: --config.model.num_classes=3, ..."

    def body(arguments: list[str]) -> None:
        overrides, others = parse_config_flags(arguments)
        options = parser.parse_args(others)
        if not is_file_name(str(options.output)):
            raise WeightsError(f"{str(options.output)!r} is no name that a file can have.")
        if options.output.suffix not in suffixes:
            raise WeightsError(f"{options.output} is no name for what is written here; let it end in {' or '.join(suffixes)}.")
        config, variables = load_detector(options.source, options.config, overrides, step=options.step)
        write(options.output, config, variables)
        print(f"written to {options.output}")

    return run_command(body, arguments)
