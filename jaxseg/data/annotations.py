"""Reads a COCO instance file into flat arrays, and judges each annotation once, at opening.

Polygons of COCO's 860,000 training objects would be gigabytes as Python lists; here they are one array of coordinates.
"""

import dataclasses
import json
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from pycocotools import mask as coco_mask

from jaxseg.data.dataset import DataError, Objects

# Why an annotation is left out. 0 means it is not.
_REASONS = (
    "",
    "annotations that are no JSON object, or whose image_id or category_id is no whole number",
    "annotations of an image that is not in images",
    "annotations of a category that is not in categories",
    "annotations of a category that the config leaves out",
    "annotations without bbox, or whose bbox is not four numbers",
    "annotations whose bbox has no area, is not finite, or lies outside the image",
    "annotations without segmentation, which a detector with masks needs, or with one that is neither polygons nor RLE",
    "annotations whose RLE does not fit the image",
    "annotations whose polygons have no area, fewer than 3 points, numbers that are not finite, or lie outside the image",
)
_NO_OBJECT, _NO_IMAGE, _NO_CATEGORY, _OTHER_CATEGORY, _NO_BOX, _BAD_BOX, _NO_SEGMENTATION, _BAD_RLE, _BAD_POLYGON = range(1, len(_REASONS))

# COCO writes two decimals: hundredths in 16 bits hold its polygons without loss, in a quarter of the memory.
_HUNDREDTHS = 100.0

# Of an image, so that its area fits the 32 bits that pycocotools counts in.
_LONGEST_SIDE = 65535

# Square pixels; points on one line give rounding errors, not exactly 0.
_SMALLEST_AREA = 1e-6


@dataclasses.dataclass
class _Rows:
    """Growing columns, one row an annotation, one a polygon, and all coordinates end to end."""

    reason: array = dataclasses.field(default_factory=lambda: array("b"))
    image: array = dataclasses.field(default_factory=lambda: array("q"))
    label: array = dataclasses.field(default_factory=lambda: array("i"))
    crowd: array = dataclasses.field(default_factory=lambda: array("b"))
    area: array = dataclasses.field(default_factory=lambda: array("d"))
    box: array = dataclasses.field(default_factory=lambda: array("d"))
    polygon_owner: array = dataclasses.field(default_factory=lambda: array("q"))
    polygon_length: array = dataclasses.field(default_factory=lambda: array("q"))
    coordinates: array = dataclasses.field(default_factory=lambda: array("d"))
    rles: dict[int, bytes] = dataclasses.field(default_factory=dict)


class Annotations:
    """The checked content of one instance file.

    Attributes:
        image_ids, file_names, image_sizes: one row an image, in the file's order.
        category_ids, class_names: in ascending order of category id.
        counts: annotations of each image.
        skipped: annotations left out, by reason.
    """

    def __init__(self, path: Path, category_ids: Sequence[int] = (), class_names: Sequence[str] = (), *, masks: bool = True):
        """Reads and checks `path`; see `CocoDataset` for the arguments. Without `masks` no `segmentation` is kept or judged.

        Raises:
            DataError: the file as a whole cannot be used.
        """
        self._masks = masks
        content = _load(path, masks)
        self.category_ids, self.class_names, known = _categories(content["categories"], path, category_ids, class_names)
        self.image_ids, self.file_names, self.image_sizes = _images(content["images"], path)
        positions = {number: i for i, number in enumerate(self.image_ids)}
        rows = _collect(content["annotations"], positions, self.image_sizes.tolist(), self.category_ids, known, masks)
        del content
        self._settle(rows)

    def _settle(self, rows: _Rows) -> None:
        """Judges boxes and polygons, and sorts what is good by image."""
        reason = np.array(rows.reason, np.int8)
        image = np.array(rows.image, np.int64)
        boxes = np.array(rows.box, np.float64).reshape(-1, 4)
        _judge_boxes(reason, boxes, self.image_sizes[image])

        owner = np.array(rows.polygon_owner, np.int64)
        length = np.array(rows.polygon_length, np.int64)
        coordinates = np.array(rows.coordinates, np.float64)
        rows.coordinates = array("d")
        start = np.cumsum(length) - length
        good = _good_polygons(coordinates, start, length, self.image_sizes[image[owner]])
        has_mask = np.zeros(len(reason), bool)
        has_mask[owner[good]] = True
        has_mask[list(rows.rles)] = True
        if self._masks:
            reason[(reason == 0) & ~has_mask] = _BAD_POLYGON

        kept = np.flatnonzero(reason == 0)
        kept = kept[np.argsort(image[kept], kind="stable")]
        self.counts = np.bincount(image[kept], minlength=len(self.image_ids))
        self.skipped = {_REASONS[r]: n for r, n in sorted(Counter(reason[reason > 0].tolist()).items())}

        self._first = np.concatenate([[0], np.cumsum(self.counts)])
        self._boxes, self._areas = boxes[kept], np.array(rows.area, np.float64)[kept]
        self._labels, self._crowd = np.array(rows.label, np.int32)[kept], np.array(rows.crowd, bool)[kept]
        position = np.full(len(reason), -1)
        position[kept] = np.arange(len(kept))
        self._rles = {int(position[row]): counts for row, counts in rows.rles.items() if position[row] >= 0}

        good &= position[owner] >= 0
        order = np.argsort(position[owner[good]], kind="stable")
        self._polygon_start, self._polygon_length = start[good][order], length[good][order]
        polygons = np.bincount(position[owner[good]], minlength=len(kept))
        self._first_polygon = np.concatenate([[0], np.cumsum(polygons)])
        self._coordinates = _pack(coordinates)

    def objects(self, image: int) -> Objects:
        """The annotations of one image, in the file's order, masks as compressed RLE.

        An area that the file does not have is the mask's, or the box's without masks.
        """
        rows = range(int(self._first[image]), int(self._first[image + 1]))
        span = slice(rows.start, rows.stop)
        size = [int(side) for side in self.image_sizes[image]]
        rles = [self._rle(row, size) for row in rows] if self._masks else None
        boxes, areas = self._boxes[span].copy(), self._areas[span].copy()
        for row in np.flatnonzero(np.isnan(areas)):
            areas[row] = boxes[row, 2] * boxes[row, 3] if rles is None else coco_mask.area(rles[row])
        return Objects(
            boxes=boxes,
            classes=self._labels[span].copy(),
            crowd=self._crowd[span].copy(),
            areas=areas,
            rles=rles,
        )

    def _rle(self, row: int, size: list[int]) -> dict[str, Any]:
        if row in self._rles:
            return {"size": size, "counts": self._rles[row]}
        polygons = []
        for i in range(int(self._first_polygon[row]), int(self._first_polygon[row + 1])):
            start = int(self._polygon_start[i])
            points = self._coordinates[start : start + int(self._polygon_length[i])]
            polygons.append(points.tolist() if points.dtype == np.float64 else (points / _HUNDREDTHS).tolist())
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def _pack(coordinates: ndarray) -> ndarray:
    """The coordinates as whole hundredths in 16 bits where that loses nothing, else as they are."""
    hundredths = np.rint(coordinates * _HUNDREDTHS)
    if len(hundredths) and (hundredths.min() < 0 or hundredths.max() > np.iinfo(np.uint16).max or not np.isfinite(hundredths).all()):
        return coordinates
    return hundredths.astype(np.uint16) if np.array_equal(hundredths / _HUNDREDTHS, coordinates) else coordinates


def _load(path: Path, masks: bool) -> dict[str, list]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_compact if masks else _without_mask)
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid JSON: byte {error.start} is not UTF-8.") from None
    except RecursionError:
        raise DataError(f"{path} is not a COCO instance file: its lists or objects are nested too deeply.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a COCO instance file: it holds a {type(content).__name__}, not an object with {', '.join(keys)}.")
    for key in keys:
        if not isinstance(content.get(key), list):
            found = (
                f"its {key} is a {type(content[key]).__name__}"
                if key in content
                else f"it has no {key}, only {', '.join(content) or 'nothing'}"
            )
            raise DataError(f"{path} is not a COCO instance file: {found}; it must have the lists {', '.join(keys)}.")
    return content


def _compact(node: dict[str, Any]) -> dict[str, Any]:
    """Called for each JSON object as it is read: polygons become arrays at once, so that memory stays small."""
    segmentation = node.get("segmentation")
    if isinstance(segmentation, list):
        try:
            node["segmentation"] = [array("d", polygon) for polygon in segmentation]
        except (TypeError, OverflowError, ValueError):
            node["segmentation"] = None
    return node


def _without_mask(node: dict[str, Any]) -> dict[str, Any]:
    """As `_compact`, where nobody wants masks."""
    node.pop("segmentation", None)
    return node


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(
    entries: list, path: Path, wanted_ids: Sequence[int], wanted_names: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...], frozenset[int]]:
    """Category ids in use, their names, and all ids the file knows."""
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        where = f"categories[{i}] of {path}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where} is {entry!r}; it must be an object with id and name.")
        number, name = entry.get("id"), entry.get("name")
        if number is None or not _whole(number):
            raise DataError(f"{where} has the id {number!r}; it must be a whole number.")
        if not isinstance(name, str):
            raise DataError(f"{where} has the name {name!r}; it must be text.")
        if number in names:
            raise DataError(f"{where} has the id {number}, which {names[number]!r} has already; category ids must be distinct.")
        names[number] = name
    if not wanted_ids:
        if not names:
            raise DataError(f"{path} has no categories; it must list at least one, with id and name.")
        return tuple(sorted(names)), tuple(names[number] for number in sorted(names)), frozenset(names)
    for number, name in zip(wanted_ids, wanted_names, strict=bool(wanted_names)):
        if names.get(number, name) != name:
            flag = "--config.data.class_names=() --config.data.category_ids=()"
            raise DataError(
                f"{path} calls category {number} {names[number]!r}, but data.class_names of the config calls it {name!r}; if these are "
                f"your own classes, --config.model.num_classes={len(names)} {flag} reads their names from the file."
            )
    if not names.keys() & set(wanted_ids):
        raise DataError(
            f"{path} has none of the categories {', '.join(map(str, wanted_ids))} that data.category_ids of the config asks for; "
            f"it has {', '.join(map(str, sorted(names))) or 'none'}."
        )
    return tuple(wanted_ids), tuple(wanted_names) or tuple(names.get(number, str(number)) for number in wanted_ids), frozenset(names)


def _images(entries: list, path: Path) -> tuple[list[int], list[str], ndarray]:
    if not entries:
        raise DataError(f"{path} has no images; it must list at least one.")
    ids: list[int] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    for i, entry in enumerate(entries):
        where = f"images[{i}] of {path}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{where} is {entry!r}; it must be an object with id, file_name, height and width.")
        if not _whole(entry.get("id")):
            raise DataError(f"{where} has the id {entry.get('id')!r}; it must be a whole number.")
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            raise DataError(f"{where} has the file_name {entry.get('file_name')!r}; it must be a path below the image folder.")
        for side in ("height", "width"):
            if not _whole(entry.get(side)) or not 1 <= entry[side] <= _LONGEST_SIDE:
                raise DataError(f"{where} has the {side} {entry.get(side)!r}; it must be a whole number from 1 to {_LONGEST_SIDE}.")
        ids.append(entry["id"])
        names.append(entry["file_name"])
        sizes.append((entry["height"], entry["width"]))
    if len(set(ids)) < len(ids):
        number = Counter(ids).most_common(1)[0][0]
        raise DataError(f"{path} has the image id {number} more than once; image ids must be distinct.")
    return ids, names, np.array(sizes, np.int32)


def _collect(
    entries: list, images: dict[int, int], sizes: list[list[int]], category_ids: Sequence[int], known: frozenset[int], masks: bool
) -> _Rows:
    """One row an annotation, good or bad; what arrays judge faster is left to `Annotations._settle`."""
    labels = {number: label for label, number in enumerate(category_ids)}
    rows = _Rows()
    for row, entry in enumerate(entries):
        image, label, box, reason = 0, 0, None, 0
        if not isinstance(entry, Mapping) or not _whole(entry.get("image_id")) or not _whole(entry.get("category_id")):
            reason, entry = _NO_OBJECT, {}
        elif entry["image_id"] not in images:
            reason = _NO_IMAGE
        elif entry["category_id"] not in known:
            reason = _NO_CATEGORY
        elif entry["category_id"] not in labels:
            reason = _OTHER_CATEGORY
        else:
            image, label = images[entry["image_id"]], labels[entry["category_id"]]
            box = _numbers(entry.get("bbox"))
            if len(box) != 4:
                reason = _NO_BOX
            elif masks:
                reason = _add_segmentation(rows, row, entry.get("segmentation"), sizes[image])
        rows.reason.append(reason)
        rows.image.append(image)
        rows.label.append(label)
        rows.crowd.append(entry.get("iscrowd") == 1)
        rows.box.extend(box if box and not reason else (0.0, 0.0, 0.0, 0.0))
        rows.area.extend(_numbers([entry.get("area")]) or (math.nan,))
    return rows


def _numbers(value: Any) -> array:
    """A list of numbers as floats; empty for anything else."""
    try:
        return array("d", value) if isinstance(value, list) else array("d")
    except (TypeError, OverflowError):
        return array("d")


def _add_segmentation(rows: _Rows, row: int, segmentation: Any, size: list[int]) -> int:
    """Files the mask of annotation `row`; the reason to leave it out, or 0."""
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            # Fewer than three points have no area (and pycocotools would take two for a box).
            if len(polygon) >= 6 and len(polygon) % 2 == 0:
                rows.polygon_owner.append(row)
                rows.polygon_length.append(len(polygon))
                rows.coordinates.extend(polygon)
        return 0
    if isinstance(segmentation, Mapping) and isinstance(segmentation.get("counts"), str | list):
        counts = _checked_counts(segmentation["counts"], segmentation.get("size"), size)
        if counts is None:
            return _BAD_RLE
        rows.rles[row] = counts
        return 0
    return _NO_SEGMENTATION


def _checked_counts(counts: str | list, stated: Any, size: list[int]) -> bytes | None:
    """Compressed run lengths that cover exactly an image of `size`, or None: pycocotools would read beyond its memory."""
    if stated != size:
        return None
    if isinstance(counts, list):
        if not all(map(_whole, counts)) or min(counts, default=-1) < 0 or sum(counts) != size[0] * size[1]:
            return None
        return coco_mask.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    runs = run_lengths(counts.encode("ascii", "replace"))
    return counts.encode("ascii") if runs is not None and runs.min() >= 0 and runs.sum() == size[0] * size[1] else None


def run_lengths(counts: bytes) -> ndarray | None:
    """The runs that COCO's compressed form stands for, or None where it is malformed.

    Each run is written in groups of 5 bits, lowest first, as one character from 48 on; 32 says that another group follows,
    16 in the last group is the sign. From the fourth run on it is the difference to the run before the last.
    """
    groups = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups & 32 == 0)
    if not len(last) or last[-1] != len(groups) - 1 or groups.min() < 0 or groups.max() > 63:
        return None
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:
        return None
    shift = 5 * (np.arange(len(groups)) - np.repeat(first, last - first + 1))
    runs = np.add.reduceat((groups & 31) << shift, first)
    runs -= np.where(groups[last] & 16, np.int64(1) << (shift[last] + 5), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _judge_boxes(reason: ndarray, boxes: ndarray, sizes: ndarray) -> None:
    """Marks boxes (x, y, width, height) that are no box of an image with `sizes` (height, width)."""
    x, y, width, height = boxes.T
    inside = (x < sizes[:, 1]) & (y < sizes[:, 0]) & (x + width > 0) & (y + height > 0)
    good = np.isfinite(boxes).all(axis=1) & (width > 0) & (height > 0) & inside
    reason[(reason == 0) & ~good] = _BAD_BOX


def _good_polygons(coordinates: ndarray, start: ndarray, length: ndarray, sizes: ndarray) -> ndarray:
    """Which polygons have an area and touch the image, reaching at most its own size beyond each side.

    A polygon far outside is an error of whoever wrote it, and pycocotools would walk along every pixel of its outline.
    """
    if not len(start):
        return np.zeros(0, bool)
    first, last = start // 2, (start + length) // 2 - 1
    x, y = coordinates[0::2], coordinates[1::2]
    following = np.arange(1, len(x) + 1)
    following[last] = first
    with np.errstate(invalid="ignore", over="ignore"):
        area = np.add.reduceat(x * y[following] - y * x[following], first) / 2
        good = np.abs(area) > _SMALLEST_AREA
        for values, side in ((x, sizes[:, 1]), (y, sizes[:, 0])):
            low, high = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
            good &= (low < side) & (high > 0) & (low >= -side) & (high <= 2 * side)
    return good
