"""Reading a COCO instance file into columns, entry by entry.

Files with a general fault are refused; faults of single annotations are recorded.
"""

import dataclasses
import enum
import itertools
import math
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from jaxseg.data.sources.coco.json_stream import JsonStream
from jaxseg.data.sources.coco.polygons import Polygons
from jaxseg.data.sources.coco.run_lengths import checked_counts
from jaxseg.data.sources.dataset import DataError
from jaxseg.errors import shortened
from jaxseg.files import is_file_name

_LISTS = ("images", "annotations", "categories")

# The longest side of an image, whose area then fits into the 32 bits that pycocotools uses.
_LONGEST_SIDE = 65535

# The limit exists because the names of categories take more memory than their text.
_MOST_CATEGORIES = 100_000

# The largest number of keys that a message lists.
_MAX_KEYS = 10


class Reason(enum.IntEnum):
    """The reason to leave out an annotation, of which only one is given for several faults."""

    NONE = 0
    NO_OBJECT = 1
    NO_IMAGE = 2
    NO_CATEGORY = 3
    OTHER_CATEGORY = 4
    BAD_CROWD = 5
    NO_BOX = 6
    BAD_BOX = 7
    UNIT_BOX = 8
    NO_SEGMENTATION = 9
    BAD_RLE = 10
    BAD_POLYGON = 11
    UNIT_POLYGON = 12


@dataclasses.dataclass
class Rows:
    """Growing columns, with one row for each annotation that names an image and a category.

    Attributes:
        image, category: the ids.
        number: the annotation's own id if `named`, otherwise its index in the file's list.
        named: whether the annotation has an id of its own.
        reason: the fault that was found while reading, or 0.
        crowd: whether the annotation is a crowd region.
        box: four numbers for each row.
        area: the area, or NaN if the file has none.
        polygon_count: the number of `polygons`, which are in the order of the rows, of each row.
        rle_row, rle_height, rle_width: for each of `rles`, its row and its stated size.
        rles: compressed run lengths.
        polygons: the polygons of all rows.
        without_object: the number of annotations without a row, which name no image or category.
        first_without: the index of the first of these.
    """

    image: array = dataclasses.field(default_factory=lambda: array("q"))
    category: array = dataclasses.field(default_factory=lambda: array("q"))
    number: array = dataclasses.field(default_factory=lambda: array("q"))
    named: array = dataclasses.field(default_factory=lambda: array("b"))
    reason: array = dataclasses.field(default_factory=lambda: array("b"))
    crowd: array = dataclasses.field(default_factory=lambda: array("b"))
    box: array = dataclasses.field(default_factory=lambda: array("d"))
    area: array = dataclasses.field(default_factory=lambda: array("d"))
    polygon_count: array = dataclasses.field(default_factory=lambda: array("i"))
    rle_row: array = dataclasses.field(default_factory=lambda: array("i"))
    rle_height: array = dataclasses.field(default_factory=lambda: array("i"))
    rle_width: array = dataclasses.field(default_factory=lambda: array("i"))
    rles: list[bytes] = dataclasses.field(default_factory=list)
    polygons: Polygons = dataclasses.field(default_factory=Polygons)
    without_object: int = 0
    first_without: int = 0

    def add(self, entries: list, place: int, masks: bool) -> None:
        """Adds some of the file's annotations.

        Args:
            entries: the annotations.
            place: the index of the first of them in the file's list.
            masks: whether masks are read.
        """
        places: Sequence[int] = range(place, place + len(entries))
        if not _all_have_ids(entries):
            entries, places = self._with_ids(entries, places)
        boxes, crowds = list(map(numbers, _column(entries, "bbox"))), _column(entries, "iscrowd")
        rows = range(len(self.image), len(self.image) + len(entries))
        filed = [self._add_mask(*row, masks) for row in zip(entries, boxes, crowds, rows, strict=True)]
        self.image.extend(_column(entries, "image_id"))
        self.category.extend(_column(entries, "category_id"))
        own = _column(entries, "id")
        named = [_is_id(number) for number in own]
        self.named.extend(named)
        self.number.extend([number if is_id else place for number, is_id, place in zip(own, named, places, strict=True)])
        self.reason.extend([reason for reason, _ in filed])
        self.polygon_count.extend([count for _, count in filed])
        self.crowd.extend([crowd == 1 for crowd in crowds])
        self.box.frombytes(b"".join([box if len(box) == 4 else _NO_BOX for box in boxes]))
        self.area.frombytes(b"".join([numbers([area]) or _NO_AREA for area in _column(entries, "area")]))

    def _with_ids(self, entries: list, places: Sequence[int]) -> tuple[list, Sequence[int]]:
        """Returns the annotations that name an image and a category, and their indices in the file.

        The others are counted.
        """
        known = [isinstance(entry, dict) and _all_have_ids([entry]) for entry in entries]
        if not self.without_object:
            self.first_without = places[known.index(False)]
        self.without_object += known.count(False)
        return list(itertools.compress(entries, known)), list(itertools.compress(places, known))

    def _add_mask(self, entry: dict, box: array, crowd: Any, row: int, masks: bool) -> tuple[int, int]:
        """Adds the mask of an annotation.

        Returns:
            The reason to leave out the row, or 0, and the number of its polygons.
        """
        if crowd not in (0, 1, None):
            return Reason.BAD_CROWD, 0
        if len(box) != 4:
            return Reason.NO_BOX, 0
        segmentation = entry.get("segmentation")
        if not masks:
            return 0, 0
        if isinstance(segmentation, list) and segmentation:
            return self._add_polygons(segmentation)
        if isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | list):
            return self._add_rle(segmentation["counts"], segmentation.get("size"), row), 0
        return Reason.NO_SEGMENTATION, 0

    def _add_polygons(self, segmentation: list) -> tuple[int, int]:
        try:
            polygons = [array("d", polygon) for polygon in segmentation]
        except (TypeError, OverflowError, ValueError):
            return Reason.NO_SEGMENTATION, 0
        count = 0
        for polygon in polygons:
            # Fewer than three points have no area, and pycocotools would take two for a box.
            if len(polygon) >= 6 and len(polygon) % 2 == 0:
                self.polygons.add(polygon)
                count += 1
        return 0, count

    def _add_rle(self, counts: str | list, stated: Any, row: int) -> int:
        size = numbers(stated)
        if len(size) != 2 or not all(1 <= side <= _LONGEST_SIDE and side.is_integer() for side in size):
            return Reason.BAD_RLE
        height, width = map(int, size)
        checked = checked_counts(counts, height * width)
        if checked is None:
            return Reason.BAD_RLE
        self.rle_row.append(row)
        self.rle_height.append(height)
        self.rle_width.append(width)
        self.rles.append(checked)
        return 0


_NO_BOX = array("d", [0, 0, 0, 0])
_NO_AREA = array("d", [math.nan])


@dataclasses.dataclass
class InstanceFile:
    """The content of an instance file.

    Attributes:
        path: the file.
        masks: whether masks are read.
        rows: the annotations.
        categories: the names of the categories by id.
        file_names: the file name of each image.
    """

    path: Path
    masks: bool
    rows: Rows = dataclasses.field(default_factory=Rows)
    categories: dict[int, str] = dataclasses.field(default_factory=dict)
    file_names: list[str] = dataclasses.field(default_factory=list)
    _image_ids: array = dataclasses.field(default_factory=lambda: array("q"))
    _sides: array = dataclasses.field(default_factory=lambda: array("i"))

    @property
    def image_ids(self) -> Int64[ndarray, "n"]:
        return np.frombuffer(self._image_ids, np.int64)

    @property
    def picture_sizes(self) -> ndarray:
        """The height and width of each image."""
        return np.frombuffer(self._sides, np.int32).reshape(-1, 2)

    def add(self, key: str, entries: list, place: int) -> None:
        """Adds some entries of one of the lists.

        Args:
            key: the name of the list.
            entries: the entries.
            place: the index of the first of them in the list.
        """
        if key == "annotations":
            self.rows.add(entries, place, self.masks)
            return
        add = self._add_image if key == "images" else self._add_category
        for position, entry in enumerate(entries, place):
            add(entry, f"{key}[{position}] of {self.path}")

    def _add_image(self, entry: Any, where: str) -> None:
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {shortened(entry)}; it must be an object with id, file_name, height and width.")
        number = entry.get("id")
        if not _is_id(number):
            raise _wrong_id(number, where)
        name = entry.get("file_name")
        if not isinstance(name, str) or not name or not is_file_name(name):
            raise DataError(f"{where} has the file_name {shortened(name)}; it must be a path below the image folder.")
        for side in ("height", "width"):
            if type(entry.get(side)) is not int or not 1 <= entry[side] <= _LONGEST_SIDE:
                raise DataError(
                    f"{where} has the {side} {shortened(entry.get(side))}; it must be a whole number from 1 to {_LONGEST_SIDE}."
                )
            self._sides.append(entry[side])
        self._image_ids.append(number)
        self.file_names.append(name)

    def _add_category(self, entry: Any, where: str) -> None:
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {shortened(entry)}; it must be an object with id and name.")
        number, name = entry.get("id"), entry.get("name")
        if not _is_id(number):
            raise _wrong_id(number, where)
        if not isinstance(name, str) or not _is_text(name):
            raise DataError(f"{where} has the name {shortened(name)}; it must be text, without half of a surrogate pair.")
        if number in self.categories:
            raise DataError(
                f"{where} has the id {number}, which {shortened(self.categories[number])} has already; category ids must be distinct."
            )
        if len(self.categories) == _MOST_CATEGORIES:
            raise DataError(f"{self.path} has over {_MOST_CATEGORIES:,} categories, more than a detector can tell apart.")
        self.categories[number] = name

    def check(self) -> None:
        """Refuses a file that has no images, or two images with the same id."""
        if not self.file_names:
            raise DataError(f"{self.path} has no images; it must list at least one.")
        ordered = np.sort(self.image_ids)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise DataError(f"{self.path} has the image id {repeated[0]} more than once; image ids must be distinct.")


def read_instance_file(path: Path, masks: bool) -> InstanceFile:
    """Reads an instance file.

    Args:
        path: the file.
        masks: whether masks are read; otherwise every `segmentation` is ignored.

    Raises:
        DataError: the file cannot be read, or one of its lists is missing or has an entry that
            cannot be used.
    """
    content = InstanceFile(path, masks)
    try:
        with path.open("rb") as file:
            found, others = _read_lists(JsonStream(path, file), content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    for key in _LISTS:
        if found.get(key) != "list":
            fault = f"its {key} is a {found[key]}" if key in found else f"it has no {key}, only {', '.join([*found, *others]) or 'nothing'}"
            raise DataError(f"{path} is not a COCO instance file: {fault}; it must have the lists {', '.join(_LISTS)}.")
    content.rows.polygons.close()
    return content


def _read_lists(stream: JsonStream, content: InstanceFile) -> tuple[dict[str, str], list[str]]:
    """Adds the entries of the lists to the content.

    Returns:
        The type of the value of each list's key, and the first other keys.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    for key in stream.items():
        if key in found:
            raise DataError(f"{stream.path} is not a COCO instance file: it has the key {key} more than once.")
        if key not in _LISTS:
            stream.skip()
            if len(others) < _MAX_KEYS:
                others.append(shortened(key)[1:-1])
        elif stream.peek() != "[":
            found[key] = stream.skip()
        else:
            found[key] = "list"
            place = 0
            for entries in stream.batches():
                content.add(key, entries, place)
                place += len(entries)
    return found, others


def numbers(value: Any) -> array:
    """Converts a list of numbers to doubles, and anything else to an empty array."""
    try:
        return array("d", value) if isinstance(value, list) else array("d")
    except (TypeError, OverflowError):
        return array("d")


def _column(entries: list[dict], key: str) -> list:
    return [entry.get(key) for entry in entries]


def _all_have_ids(entries: list) -> bool:
    """Whether all of these annotations name an image and a category."""
    if set(map(type, entries)) != {dict}:
        return False
    ids = _column(entries, "image_id") + _column(entries, "category_id")
    return set(map(type, ids)) == {int} and _is_id(min(ids)) and _is_id(max(ids))


def _is_id(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer of at most 64 bits, and not a truth value."""
    return type(value) is int and value.bit_length() < 64


def _wrong_id(value: Any, where: str) -> DataError:
    return DataError(f"{where} has the id {shortened(value)}; it must be a whole number of at most 64 bits.")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
