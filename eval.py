"""Evaluates a detector, draws what it finds in pictures, or times it: python eval.py --checkpoint RUN_OR_FILE [--images PICTURES]"""

import argparse
import sys
from pathlib import Path

from jaxseg.commands.evaluate import run
from jaxseg.commands.run import run_command
from jaxseg.config import parse_config_flags


def main(arguments: list[str]) -> int:
    """Runs the command; 0 when all is done, else what `run_command` says."""
    return run_command(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="eval.py",
        usage="python eval.py --checkpoint RUN_OR_FILE [--config FILE] [--images PICTURES] [options]",
        description="COCO metrics on the validation images; drawings of what is found in pictures; or times.",
        epilog="Any key of the config: --config.data.root=DIR, --config.eval.batch_size=16, ...",
    )
    parser.add_argument("--checkpoint", required=True, help="run folder of train.py, or a file of weights")
    parser.add_argument("--config", help="a file of configs/ (default: config.json of the run folder)")
    parser.add_argument("--step", default="best", help="of a run folder: best (default), latest or a number")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for what is written (default: results)")
    parser.add_argument("--images", help="file, folder or glob of pictures to draw detections in, instead of measuring")
    parser.add_argument("--benchmark", action="store_true", help="time detection, on the validation images or on those of --images")
    parser.add_argument("--score_threshold", type=float, help="keep scores above it (default: 0; for drawings 0.15)")
    parser.add_argument("--top_k", type=int, help="keep so many objects of a picture, 0 keeps all (default: 0; for drawings 15)")
    parser.add_argument("--nms", choices=("fast", "cross_class", "greedy"), help="of YOLACT, instead of the config's")
    parser.add_argument("--limit", type=int, default=0, help="look at the first so many pictures, 0 at all (default)")
    overrides, others = parse_config_flags(arguments)
    run(overrides=overrides, **vars(parser.parse_args(others)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
