"""Writes a detector's weights under our names and in our layouts, as .npz or .safetensors.

    python -m jaxseg.commands.convert weights.pth weights.safetensors --config configs/yolact_r50.py

Everything that takes weights takes the file that is written. Of a run folder the averaged
parameters are written, if it has some.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxseg.commands.write_weights import write_weights
from jaxseg.weights.export import write_variables


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its answer is what `run_command` says."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return write_weights(
        parser, arguments, suffixes=(".npz", ".safetensors"), write=lambda path, _, variables: write_variables(path, variables)
    )


if __name__ == "__main__":
    sys.exit(main())
