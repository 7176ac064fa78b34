"""Writes a detector as a checkpoint that its original implementation loads.

    python -m jaxseg.commands.export_torch runs/yolact_r50 yolact_resnet50_0_800000.pth

PyTorch is not needed. The original is dbolya/yolact, torchvision, detectron2, mmdetection or
maskrcnn-benchmark; the conventions in the configuration decide which. dbolya/yolact derives its
own configuration from the file's name (`<config>_<epoch>_<iteration>.pth`), unless it is given by
`--config`.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxseg.commands.write_weights import write_weights
from jaxseg.weights.export import write_state_dict


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; see `run_command`."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.export_torch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return write_weights(parser, arguments, suffixes=(".pth", ".pt"), write=write_state_dict)


if __name__ == "__main__":
    sys.exit(main())
