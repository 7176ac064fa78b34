"""Splits a COCO instance file by images into two files, one for training and one for validation.

    python -m jaxseg.commands.split my_data/annotations/all.json --val 0.1 [--seed 0]

The command writes all_train.json and all_val.json beside the file, or into the folder of --output.
Every annotation goes with its image. Both files contain the categories, the info and the licenses.
Images and annotations keep their order. The same seed always gives the same split. The image files
themselves are not needed.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxseg.commands.run import run_command
from jaxseg.data.sources.coco.split import read_images, split_images, write_parts
from jaxseg.data.sources.dataset import DataError
from jaxseg.errors import ConfigError, shortened

logger = logging.getLogger(__name__)


def parse_val(text: str, images: int) -> int:
    """Returns how many of `images` images are for validation.

    The text is either a share between 0 and 1 or a whole number of images.

    Raises:
        ConfigError: the text is neither, or leaves no image for one of the two parts.
        DataError: there are too few images for two parts.
    """
    if images < 2:
        raise DataError(f"There is nothing to split: the file has {images} images, and each part needs at least one.")
    try:
        count = int(text) if text.isdecimal() else _share(float(text), images)
    except ValueError:
        count = 0
    if not 0 < count < images:
        allowed = f"a share between 0 and 1, or a whole number of images from 1 to {images - 1}"
        raise ConfigError(f"--val {shortened(text)} is out of range; it must be {allowed}.")
    return count


def _share(share: float, images: int) -> int:
    # Each part gets at least one image, however small the share or the file is.
    return min(max(round(share * images), 1), images - 1) if 0 < share < 1 else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; see `run_command`."""
    return run_command(_run, arguments)


def _run(arguments: list[str]) -> None:
    flags = _parser().parse_args(arguments)
    if flags.seed < 0:
        raise ConfigError(f"--seed {flags.seed} is out of range; it must be 0 or more.")
    images = read_images(flags.annotations)
    folder = flags.annotations.parent if flags.output is None else flags.output
    parts = split_images(images, parse_val(flags.val, len(images)), flags.seed)
    paths = {name: folder / f"{flags.annotations.stem}_{name}.json" for name in parts}
    written = write_parts(flags.annotations, parts, paths, overwrite=flags.overwrite)
    print("\n".join(written.contents))
    for line in written.remarks:
        logger.warning("%s", line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.split", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", metavar="ANNOTATIONS.json", type=Path, help="COCO instance file to split")
    parser.add_argument("--val", required=True, help="images for validation: a share such as 0.1, or a whole number such as 200")
    parser.add_argument("--seed", type=int, default=0, help="which images go where (default 0)")
    parser.add_argument("--output", type=Path, help="folder for the two files; else that of the annotations")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    return parser


if __name__ == "__main__":
    sys.exit(main())
