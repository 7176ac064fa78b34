"""Splits a COCO instance file by images into two, one for training and one for validation. The images themselves are not needed.

    python -m jaxseg.commands.split my_data/annotations/all.json --val 0.1 [--seed 0] [--output FOLDER] [--overwrite]

Writes all_train.json and all_val.json beside the file, or into FOLDER. Every annotation goes with its image; categories, info and
licenses are in both; images and annotations keep their order. The same seed gives the same split.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from jaxseg.commands.run import run_command
from jaxseg.config import ConfigError
from jaxseg.data.sources.coco.json_stream import JsonStream
from jaxseg.data.sources.dataset import DataError
from jaxseg.errors import shortened
from jaxseg.files import is_file_name, make_folder, replacing

logger = logging.getLogger("jaxseg")

# What each list's entries must have, as whole numbers.
_IDS = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[JsonStream]:
    if not is_file_name(str(path)):
        raise DataError(f"{str(path)!r} is no name that a file can have.")
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        try:
            yield JsonStream(path, file)
        except IsADirectoryError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def read_images(path: Path) -> list[int]:
    """The ids of the images of a COCO instance file, in its order; of all else the ids are checked, too, and nothing more.

    Raises:
        DataError: the file cannot be read, or the ids do not say which annotation belongs to which image.
    """
    images: list[int] = []
    found: set[str] = set()
    with _opened(path) as stream:
        for key in stream.items():
            if key in found:
                raise DataError(f"{path} is not a COCO instance file: it has the key {key} more than once.")
            if key in _IDS and stream.peek() == "[":
                found.add(key)
                for position, entry in enumerate(_entries(stream)):
                    _check_ids(entry, _IDS[key], f"{key}[{position}] of {path}")
                    images += [entry["id"]] if key == "images" else []
            else:
                stream.skip()
    for key in _IDS:
        if key not in found:
            raise DataError(f"{path} is not a COCO instance file: it has no list {key}; it must have the lists {', '.join(_IDS)}.")
    repeated = [number for number, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(f"{path} has several images with the id {shortened(repeated[0])}; the ids of images must be distinct.")
    return images


def _entries(stream: JsonStream) -> Iterator[Any]:
    for batch in stream.batches():
        yield from batch


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


def split_images(images: Sequence[int], val: int, seed: int) -> dict[str, set[int]]:
    """The ids of images in two parts, "train" and "val", of which `val` images, drawn by `seed`, are the latter."""
    chosen = {images[position] for position in np.random.default_rng(seed).permutation(len(images))[:val]}
    return {"train": set(images) - chosen, "val": chosen}


@dataclasses.dataclass
class _Part:
    """One of the files that are written: the images in it, the file, and how many objects of each category have gone there."""

    images: set[int]
    file: BinaryIO
    objects: Counter[int] = dataclasses.field(default_factory=Counter)

    def write(self, value: Any, before: str = "") -> None:
        self.file.write(before.encode() + json.dumps(value).encode())


def write_parts(path: Path, parts: dict[str, set[int]], paths: dict[str, Path], *, overwrite: bool) -> list[str]:
    """Writes each part of a file that `read_images` has checked to its path, entry by entry; makes the folder if need be.

    Returns:
        lines for the user: on objects without an image, and on categories with objects in one part only.

    Raises:
        ConfigError: a file is there already, and `overwrite` is False; or the folder cannot be made.
        OSError: a file cannot be written.
    """
    for target in paths.values():
        if target.exists() and not overwrite:
            raise ConfigError(f"{target} exists already; choose another --output folder, or say --overwrite.")
        make_folder(target.parent, "--output", ConfigError)
    names: dict[int, Any] = {}
    with contextlib.ExitStack() as files, _opened(path) as stream:
        written = {name: _Part(images, files.enter_context(replacing(paths[name]))) for name, images in parts.items()}
        left_out = 0
        for number, key in enumerate(stream.items()):
            for part in written.values():
                part.write(key, ", " if number else "{")
            if key in ("images", "annotations"):
                left_out += _write_list(stream, key, list(written.values()))
                continue
            value = stream.value()
            if key == "categories":
                names = {category["id"]: category.get("name", category["id"]) for category in value}
            for part in written.values():
                part.write(value, ": ")
        for part in written.values():
            part.file.write(b"}\n")
    for name, part in written.items():
        print(f"{paths[name]}: {_counted(len(part.images), 'image')}, {_counted(part.objects.total(), 'object')}")
    return _remarks(names, {name: part.objects for name, part in written.items()}, left_out)


def _write_list(stream: JsonStream, key: str, parts: Sequence[_Part]) -> int:
    """Writes each entry of a list into the part that has its image; how many have none."""
    separators = dict.fromkeys(range(len(parts)), ": [")
    left_out = 0
    for entry in _entries(stream):
        image = entry["id" if key == "images" else "image_id"]
        place = next((place for place, part in enumerate(parts) if image in part.images), None)
        if place is None:
            left_out += 1
            continue
        parts[place].write(entry, separators[place])
        separators[place] = ", "
        if key == "annotations":
            parts[place].objects[entry["category_id"]] += 1
    for place, part in enumerate(parts):
        part.file.write(b": []" if separators[place] == ": [" else b"]")
    return left_out


def _remarks(names: dict[int, Any], objects: dict[str, Counter[int]], left_out: int) -> list[str]:
    """A line for each category that has objects, but none in one of the parts, and one for annotations of no image."""
    lines = []
    for category, name in names.items():
        counts = {part: count[category] for part, count in objects.items()}
        if sum(counts.values()) and not all(counts.values()):
            empty = min(counts, key=lambda part: counts[part])
            total = _counted(sum(counts.values()), "object")
            lines.append(f"The category {shortened(name)} has {total} in the file, but none in the {empty} part.")
    if left_out:
        lines.append(f"Left out of both parts: {_counted(left_out, 'annotation')} with the image_id of no image.")
    return lines


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def main(arguments: list[str]) -> int:
    """The command line."""
    return run_command(lambda: _run(arguments))


def _run(arguments: list[str]) -> None:
    flags = _parser().parse_args(arguments)
    if flags.seed < 0:
        raise ConfigError(f"--seed {flags.seed} is out of range; it must be 0 or more.")
    images = read_images(flags.annotations)
    folder = flags.annotations.parent if flags.output is None else flags.output
    parts = split_images(images, parse_val(flags.val, len(images)), flags.seed)
    paths = {name: folder / f"{flags.annotations.stem}_{name}.json" for name in parts}
    for line in write_parts(flags.annotations, parts, paths, overwrite=flags.overwrite):
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
    sys.exit(main(sys.argv[1:]))
