"""Evaluates a detector, draws its detections in pictures, or measures its speed.

python eval.py --checkpoint RUN_OR_FILE [--images PICTURES]
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxseg.commands.run import run_command
from jaxseg.config import Config, ConfigError, parse_config_flags
from jaxseg.data.sources.from_config import open_dataset, resolve_classes
from jaxseg.devices import initialize_distributed
from jaxseg.evaluation.coco_metrics import class_table, threshold_table
from jaxseg.evaluation.detect import DRAWN, Selection, with_nms
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.evaluation.timing import time_detection, timing_table
from jaxseg.files import make_folder
from jaxseg.picture_files import find_pictures, predict_files, readable_pictures
from jaxseg.pictures import ImageError
from jaxseg.predictor import Predictor
from jaxseg.weights.load import load_detector

logger = logging.getLogger(__name__)

_BENCHMARK_PICTURES = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of eval.py; each field is the flag of the same name.

    Attributes:
        checkpoint: the folder of a run, or a file of weights.
        config: the file of a configuration; None reads config.json in the folder of the run.
        overrides: values that replace those of the configuration, by their dotted keys.
        step: the checkpoint in the folder of a run: "best", "latest" or a number.
        output: the folder for the results.
        images: a file, folder or glob of pictures in which to draw detections; None evaluates on
            the validation images.
        benchmark: whether to measure the speed of detection instead.
        score_threshold: only detections with a higher score are kept. None takes the default for
            metrics or for drawings.
        top_k: the largest number of detections to keep in a picture. None takes the default for
            metrics or for drawings.
        nms: a rule of non-maximum suppression that replaces the configuration's.
        limit: the number of pictures to use, from the start; 0 uses all.

    Raises:
        ConfigError: `limit` is negative.
    """

    checkpoint: str
    config: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: str = "best"
    output: Path = Path("results")
    images: str | None = None
    benchmark: bool = False
    score_threshold: float | None = None
    top_k: int | None = None
    nms: str | None = None
    limit: int = 0

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ConfigError(f"--limit {self.limit} is out of range; it must be 0 (all) or more.")

    @property
    def draws(self) -> bool:
        """Whether the command draws detections in `images`."""
        return self.images is not None and not self.benchmark

    @property
    def selection(self) -> Selection:
        """The detections to keep: by default, all for metrics and a few for drawings."""
        default = DRAWN if self.draws else Selection()
        return Selection(
            default.score_threshold if self.score_threshold is None else self.score_threshold,
            default.top_k if self.top_k is None else self.top_k,
        )


def run(options: Options) -> None:
    """Runs eval.py with these options, and prints tables on stdout.

    Raises:
        UserError: something in the user's input cannot be used; the message is one sentence.
    """
    if not options.draws and not options.benchmark:
        initialize_distributed()
    selection = options.selection
    config, variables = load_detector(options.checkpoint, options.config, options.overrides, step=options.step)
    config = with_nms(config, options.nms)
    if options.benchmark:
        print(time_pictures(config, variables, options.images, limit=options.limit, selection=selection))
    elif options.images is not None:
        predictor = Predictor(config, variables, **dataclasses.asdict(selection), masks="crop")
        predict_files(predictor, find_pictures(options.images)[: options.limit or None], options.output)
    else:
        tables = measure(config, variables, options.output, limit=options.limit, selection=selection)
        if jax.process_index() == 0:
            print(tables)


def measure(config: Config, variables: Any, output: Path, *, limit: int, selection: Selection) -> str:
    """Evaluates on the validation images of `config.data` and writes the results to `output`.

    Returns:
        Tables of the results.

    Raises:
        ConfigError, DataError: the dataset or `output` cannot be used, or the detector was made for
            another dataset.
    """
    # The folder is created first, so that an error appears before the work and not after it.
    make_folder(output, "--output", ConfigError)
    config = resolve_classes(config)
    dataset = open_dataset(config, "val")
    logger.info("evaluating on %d images", min(limit, len(dataset)) if limit else len(dataset))
    metrics = evaluate(config, variables, dataset, limit=limit, **dataclasses.asdict(selection), output=output)
    return f"{class_table(metrics, dataset.class_names)}\n\n{threshold_table(metrics)}\n\nwritten to {output}"


def time_pictures(config: Config, variables: Any, images: str | None, *, limit: int, selection: Selection) -> str:
    """Times detection with batches of 1 and of `config.eval.batch_size`, and returns a table.

    Args:
        config: the configuration of the detector.
        variables: its parameters and statistics.
        images: the pictures to use, as `find_pictures` takes them; None takes validation images.
        limit: the number of different pictures; 0 takes 8.
        selection: which detections to convert to the picture's size.

    Raises:
        ImageError, DataError: there are no pictures, or they cannot be read.
    """
    limit = limit or _BENCHMARK_PICTURES
    if images is None:
        dataset = open_dataset(config, "val")
        pictures = [dataset[i].image for i in range(min(limit, len(dataset)))]
    else:
        pictures = [picture for _, picture in readable_pictures(find_pictures(images)[:limit], lambda path: None)]
        if not pictures:
            raise ImageError(f"None of the first {limit} files of {images} is a picture that OpenCV can read.")
    sizes = sorted({1, config.eval.batch_size})
    return timing_table([time_detection(config, variables, pictures, batch_size=size, selection=selection) for size in sizes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; see `run_command`."""
    return run_command(_run, arguments)


def _run(arguments: list[str]) -> None:
    overrides, others = parse_config_flags(arguments)
    run(Options(overrides=overrides, **vars(_parser().parse_args(others))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="%(prog)s --checkpoint RUN_OR_FILE [--config FILE] [--images PICTURES] [options]",
        description="COCO metrics on the validation images; drawings of what is found in pictures; or times.",
        epilog="Any key of the config: --config.data.root=DIR, --config.eval.batch_size=16, ...",
    )
    drawn, measured = DRAWN, Selection()
    threshold = f"keep scores above it (default: {measured.score_threshold:g}; for drawings {drawn.score_threshold:g})"
    top_k = f"keep so many objects of a picture, 0 keeps all (default: {measured.top_k}; for drawings {drawn.top_k})"
    parser.add_argument("--checkpoint", required=True, help="run folder of train.py, or a file of weights")
    parser.add_argument("--config", help="a file of configs/ or its name (default: config.json of the run folder)")
    parser.add_argument("--step", default="best", help="of a run folder: best (default), latest or a number")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder for what is written (default: results)")
    parser.add_argument("--images", help="file, folder or glob of pictures to draw detections in, instead of measuring")
    parser.add_argument("--benchmark", action="store_true", help="time detection, on the validation images or on those of --images")
    parser.add_argument("--score_threshold", type=float, help=threshold)
    parser.add_argument("--top_k", type=int, help=top_k)
    parser.add_argument("--nms", metavar="RULE", help="rule of suppression instead of the config's; of YOLACT fast, cross_class or greedy")
    parser.add_argument("--limit", type=int, default=0, help="look at the first so many pictures, 0 at all (default)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
