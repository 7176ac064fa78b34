"""Inspects a dataset before training: its content, its errors, and the images the model sees.

    python -m jaxseg.commands.inspect --config configs/yolact_r50.py --config.data.root=data/coco

The exit code is 0 if the dataset can be used and 1 if it cannot. It is 2 if the command or the
configuration is wrong, or if the pictures cannot be written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxseg.commands.run import run_command
from jaxseg.config import Config, ConfigError, load_config, parse_config_flags
from jaxseg.data.inspection import check_usable, describe, draw_samples, inspect_dataset
from jaxseg.data.sources.from_config import DataError, InstanceDataset, Split, open_dataset, resolve_classes
from jaxseg.files import make_folder


def inspect_splits(config: Config, splits: Sequence[Split], pictures: int, folder: Path) -> dict[Split, int]:
    """Inspects the splits one after the other, and returns how many images of each can be used.

    Raises:
        ConfigError: `folder` cannot be created.
        DataError: a dataset as a whole cannot be used.
    """
    usable: dict[Split, int] = {}
    for split in splits:
        if split == "train":
            dataset = open_dataset(config, split)
            config = _with_classes(config, dataset)
        else:
            config = _with_classes(config)
            dataset = open_dataset(config, split)
        usable[split] = inspect_split(config, dataset, split, pictures, folder)
    return usable


def _with_classes(config: Config, dataset: InstanceDataset | None = None) -> Config:
    """Does the same as `resolve_classes`, but raises DataError if the classes do not match."""
    try:
        return resolve_classes(config, dataset)
    except ConfigError as error:
        raise DataError(str(error)) from None


def inspect_split(config: Config, dataset: InstanceDataset, split: Split, pictures: int, folder: Path) -> int:
    """Prints the report on one split and draws its pictures.

    Returns:
        The number of images that can be used.

    Raises:
        ConfigError: `folder` cannot be created.
        DataError: the split cannot be used; see `check_usable`.
    """
    if pictures:
        # The folder is created first, so that an error appears before the work and not after it.
        make_folder(folder, "--output", ConfigError)
    report = inspect_dataset(dataset, config.data.max_objects)
    print(f"\n{split}\n{describe(report, dataset, config.data.max_objects)}")
    check_usable(report, split)
    if pictures:
        written = draw_samples(config, dataset, split, pictures, folder)
        print(f"{len(written)} pictures of what the model sees: {folder}")
    return report.images - len(report.broken)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, which the module's docstring explains."""
    return run_command(_run, arguments)


def _run(arguments: list[str]) -> int:
    overrides, others = parse_config_flags(arguments)
    flags = _parser().parse_args(others)
    config = load_config(flags.config, overrides)
    if flags.pictures < 0:
        raise ConfigError(f"--pictures {flags.pictures} is out of range; it must be 0 (none) or more.")
    splits: tuple[Split, ...] = (flags.split,) if flags.split else ("train", "val")
    try:
        usable = inspect_splits(config, splits, flags.pictures, flags.output or Path("results") / f"inspect_{config.name}")
    except DataError as error:
        print(f"\nThe dataset cannot be used: {error}")
        return 1
    print("\nThe dataset can be used: " + " and ".join(f"{count} {split} images" for split, count in usable.items()) + ".")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.commands.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="config file; --config.data.root=DIR and the like replace single values")
    parser.add_argument("--split", choices=("train", "val"), help="one of them only; else both")
    parser.add_argument("--output", type=Path, help="folder for the pictures; else results/inspect_<name of the config>")
    parser.add_argument("--pictures", type=int, default=8, help="how many of each split to draw, 0 draws none (default 8)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
