"""Splitting a COCO instance file into two files by image, while it is read entry by entry."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np

from jaxseg.data.sources.coco.json_stream import JsonStream
from jaxseg.data.sources.dataset import DataError
from jaxseg.errors import ConfigError, shortened
from jaxseg.files import is_file_name, make_folder, replacing

# The ids that the entries of each list must have.
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
    """Reads the ids of the images of a COCO instance file, in its order.

    Only the ids in all lists are checked.

    Raises:
        DataError: the file cannot be read, or an id is missing or not valid.
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


def split_images(images: Sequence[int], val: int, seed: int) -> dict[str, set[int]]:
    """Divides the ids of images into two parts.

    Args:
        images: the ids of all images.
        val: the number of images of the part "val", which are drawn at random.
        seed: the seed of the random numbers.

    Returns:
        The ids of the parts "train" and "val".
    """
    chosen = {images[position] for position in np.random.default_rng(seed).permutation(len(images))[:val]}
    return {"train": set(images) - chosen, "val": chosen}


@dataclasses.dataclass
class _Part:
    """One of the two files.

    Attributes:
        images: the ids of its images.
        file: the file itself.
        objects: the number of objects of each category written so far.
    """

    images: set[int]
    file: BinaryIO
    objects: Counter[int] = dataclasses.field(default_factory=Counter)

    def write(self, value: Any, before: str = "") -> None:
        self.file.write(before.encode() + json.dumps(value).encode())


class Written(NamedTuple):
    """The lines to print for the user.

    Attributes:
        contents: for each file, the numbers of its images and objects.
        remarks: on annotations without an image, and on categories with objects in one part only.
    """

    contents: list[str]
    remarks: list[str]


def write_parts(path: Path, parts: dict[str, set[int]], paths: dict[str, Path], *, overwrite: bool) -> Written:
    """Writes each part of a file to its path, entry by entry.

    Folders are made if they do not exist.

    Args:
        path: the file to split, which `read_images` has checked.
        parts: the ids of the images of each part, by the part's name.
        paths: the path of each part.
        overwrite: whether existing files may be replaced.

    Raises:
        ConfigError: a file exists and `overwrite` is false, or the folder cannot be made.
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
    contents = [
        f"{paths[name]}: {_counted(len(part.images), 'image')}, {_counted(part.objects.total(), 'object')}"
        for name, part in written.items()
    ]
    return Written(contents, _remarks(names, {name: part.objects for name, part in written.items()}, left_out))


def _write_list(stream: JsonStream, key: str, parts: Sequence[_Part]) -> int:
    """Writes each entry of a list to the part that has its image.

    Returns:
        The number of entries without an image.
    """
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
    """Returns lines on categories with objects in one part only and on lost annotations."""
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
