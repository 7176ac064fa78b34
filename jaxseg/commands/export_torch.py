"""Writes a detector as a checkpoint that its original loads. PyTorch is not needed.

    python -m jaxseg.commands.export_torch runs/yolact_r50 yolact_resnet50_0_800000.pth

The original is dbolya/yolact, torchvision, detectron2, mmdetection or maskrcnn-benchmark, as the
configuration's conventions say. dbolya/yolact takes its config from the file's name
(`<config>_<epoch>_<iteration>.pth`), or from its own `--config`.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxseg.commands.write_weights import write_weights
from jaxseg.weights.export import write_state_dict


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; its answer is what `run_command` says."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.export_torch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return write_weights(parser, arguments, suffixes=(".pth", ".pt"), write=write_state_dict)


if __name__ == "__main__":
    sys.exit(main())
