"""Splits a COCO instance file by images into two, one for training and one for validation. The images themselves are not needed.

    python -m jaxseg.data.split my_data/annotations/all.json --val 0.1 [--seed 0] [--output FOLDER] [--overwrite]

Writes all_train.json and all_val.json beside the file, or into FOLDER. Every annotation goes with its image; categories, info and
licenses are in both; images and annotations keep their order. The same seed gives the same split.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from jaxseg.command_line import run_command
from jaxseg.config import ConfigError
from jaxseg.data.dataset import DataError
from jaxseg.errors import shortened
from jaxseg.files import make_folder, read_json, write_text

logger = logging.getLogger("jaxseg")

# What each list's entries must have, as whole numbers.
_IDS = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}


def read_instances(path: Path) -> dict[str, Any]:
    """The content of a COCO instance file, of which the ids are checked and nothing else.

    Raises:
        DataError: the file cannot be read, or the ids do not say which annotation belongs to which image.
    """
    content = read_json(path, DataError)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a COCO instance file: it holds a {type(content).__name__}, not an object with {', '.join(_IDS)}.")
    for key, ids in _IDS.items():
        if not isinstance(content.get(key), list):
            raise DataError(f"{path} is not a COCO instance file: it has no list {key}; it must have the lists {', '.join(_IDS)}.")
        for position, entry in enumerate(content[key]):
            _check_ids(entry, ids, f"{key}[{position}] of {path}")
    repeated = [number for number, count in Counter(image["id"] for image in content["images"]).items() if count > 1]
    if repeated:
        raise DataError(f"{path} has several images with the id {shortened(repeated[0])}; the ids of images must be distinct.")
    return content


def _check_ids(entry: Any, ids: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {shortened(entry)}; it must be an object with {' and '.join(ids)}.")
    for key in ids:
        if not _is_whole(entry.get(key)):
            raise DataError(f"{where} has the {key} {shortened(entry.get(key))}; it must be a whole number.")


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def parse_val(text: str, images: int) -> int:
    """How many of `images` images the validation gets, from a share between 0 and 1 or a whole number of images.

    Raises:
        ConfigError: it is neither, or leaves no image for one of the two parts.
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
    # Both parts get an image, however small the share or the file is.
    return min(max(round(share * images), 1), images - 1) if 0 < share < 1 else 0


def split_instances(content: dict[str, Any], val: int, seed: int) -> dict[str, dict[str, Any]]:
    """The content of a COCO instance file in two parts, "train" and "val", of which `val` images, drawn by `seed`, are the latter."""
    images = content["images"]
    drawn = np.random.default_rng(seed).permutation(len(images))[:val]
    chosen = {images[position]["id"] for position in drawn}
    known = {image["id"] for image in images}
    parts = {"train": known - chosen, "val": chosen}
    return {name: _part(content, ids) for name, ids in parts.items()}


def _part(content: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    return {
        **content,
        "images": [image for image in content["images"] if image["id"] in ids],
        "annotations": [annotation for annotation in content["annotations"] if annotation["image_id"] in ids],
    }


def remarks(content: dict[str, Any], parts: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each category that has objects, but none in one of the parts, and one for annotations of no image."""
    lines = []
    counts = {name: Counter(entry["category_id"] for entry in part["annotations"]) for name, part in parts.items()}
    for category in content["categories"]:
        objects = {name: count[category["id"]] for name, count in counts.items()}
        if sum(objects.values()) and not all(objects.values()):
            empty = min(objects, key=lambda name: objects[name])
            name = shortened(category.get("name", category["id"]))
            lines.append(f"The category {name} has {_counted(sum(objects.values()), 'object')} in the file, but none in the {empty} part.")
    left_out = len(content["annotations"]) - sum(len(part["annotations"]) for part in parts.values())
    if left_out:
        lines.append(f"Left out of both parts: {_counted(left_out, 'annotation')} with the image_id of no image.")
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def write_parts(parts: dict[str, dict[str, Any]], paths: dict[str, Path], *, overwrite: bool) -> None:
    """Writes each part to its path; makes the folder if need be.

    Raises:
        ConfigError: a file is there already, and `overwrite` is False; or the folder cannot be made.
        OSError: a file cannot be written.
    """
    for path in paths.values():
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists already; choose another --output folder, or say --overwrite.")
    for name, path in paths.items():
        make_folder(path.parent, "--output", ConfigError)
        write_text(path, json.dumps(parts[name]) + "\n")


def main(arguments: list[str]) -> int:
    """The command line."""
    return run_command(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    flags = _parser().parse_args(arguments)
    if flags.seed < 0:
        raise ConfigError(f"--seed {flags.seed} is out of range; it must be 0 or more.")
    content = read_instances(flags.annotations)
    folder = flags.annotations.parent if flags.output is None else flags.output
    parts = split_instances(content, parse_val(flags.val, len(content["images"])), flags.seed)
    paths = {name: folder / f"{flags.annotations.stem}_{name}.json" for name in parts}
    write_parts(parts, paths, overwrite=flags.overwrite)
    for name, part in parts.items():
        print(f"{paths[name]}: {_counted(len(part['images']), 'image')}, {_counted(len(part['annotations']), 'object')}")
    for line in remarks(content, parts):
        logger.warning("%s", line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.data.split", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", metavar="ANNOTATIONS.json", type=Path, help="COCO instance file to split")
    parser.add_argument("--val", required=True, help="images for validation: a share such as 0.1, or a whole number such as 200")
    parser.add_argument("--seed", type=int, default=0, help="which images go where (default 0)")
    parser.add_argument("--output", type=Path, help="folder for the two files; else that of the annotations")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
