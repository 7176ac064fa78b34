"""Writes a detector's weights with jaxseg's names and layouts, as .npz or .safetensors.

    python -m jaxseg.commands.convert weights.pth weights.safetensors --config configs/yolact_r50.py

Every command and function that reads weights can read the file. If the input is the folder of a
run that averages its parameters, the averaged parameters are written.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxseg.commands.write_weights import write_weights
from jaxseg.weights.export import write_variables


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; see `run_command`."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return write_weights(
        parser, arguments, suffixes=(".npz", ".safetensors"), write=lambda path, _, variables: write_variables(path, variables)
    )


if __name__ == "__main__":
    sys.exit(main())
