"""The annotations of a COCO instance file, checked when it is opened, and looked up by image.

As Python lists, the polygons of COCO's 860,000 training objects would take gigabytes; here they are
blocks of 16-bit numbers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8, Int32
from numpy import ndarray
from pycocotools import mask as coco_mask

from jaxseg.data.sources.coco.categories import choose_categories
from jaxseg.data.sources.coco.checks import find_problems, positions
from jaxseg.data.sources.coco.instance_file import Reason, Rows, read_instance_file
from jaxseg.data.sources.dataset import ObjectPolygons, Objects

_DESCRIPTIONS = {
    Reason.NO_OBJECT: "annotations that are no JSON object, or whose image_id or category_id is no whole number of at most 64 bits",
    Reason.NO_IMAGE: "annotations of an image that is not in images",
    Reason.NO_CATEGORY: "annotations of a category that is not in categories",
    Reason.OTHER_CATEGORY: "annotations of a category that the config leaves out",
    Reason.BAD_CROWD: "annotations whose iscrowd is neither 0 nor 1",
    Reason.NO_BOX: "annotations without bbox, or whose bbox is not four numbers",
    Reason.BAD_BOX: "annotations whose bbox has no area, is not finite, or lies outside the image",
    Reason.UNIT_BOX: "annotations whose bbox lies within 0..1, as normalised coordinates do; COCO's are in pixels",
    Reason.NO_SEGMENTATION: (
        "annotations without segmentation, which a detector with masks needs, or with one that is neither polygons nor RLE"
    ),
    Reason.BAD_RLE: "annotations whose RLE does not fit the image",
    Reason.BAD_POLYGON: (
        "annotations whose polygons have no area, fewer than 3 points, numbers that are not finite, lie outside the image, "
        "or together have an outline of over 4,194,304 pixels, or, in a picture of over 67 million, an extent of over 33 million"
    ),
    Reason.UNIT_POLYGON: "annotations whose polygons lie within 0..1, as normalised coordinates do; COCO's are in pixels",
}


class Annotations:
    """The checked content of one instance file.

    Attributes:
        image_ids, file_names, picture_sizes: one entry for each image, in the file's order.
        category_ids, class_names: one entry for each category, in ascending order of the id.
        counts: the number of annotations of each image.
        skipped: the number of annotations left out, by the reason in words.
        first_skipped: the description of the first of them, by the reason.
    """

    def __init__(self, path: Path, category_ids: Sequence[int] = (), class_names: Sequence[str] = (), *, masks: bool = True):
        """Reads and checks a file; see `CocoDataset` for the arguments.

        Raises:
            DataError: the file has a general fault.
        """
        self._masks = masks
        file = read_instance_file(path, masks)
        self.category_ids, self.class_names = choose_categories(file.categories, path, category_ids, class_names)
        file.check()
        self.image_ids, self.file_names, self.picture_sizes = file.image_ids, file.file_names, file.picture_sizes
        known = np.array(list(file.categories), np.int64)
        labels = {number: label for label, number in enumerate(self.category_ids)}
        image, category = (
            positions(np.frombuffer(ids, np.int64), of) for ids, of in ((file.rows.image, self.image_ids), (file.rows.category, known))
        )
        label = np.array([labels.get(number, -1) for number in file.categories], np.int32)[category]
        reason = find_problems(file, image, category, label)
        self._sort_by_image(file.rows, reason, image, label)
        self._count_skipped(file.rows, reason)

    def _sort_by_image(self, rows: Rows, reason: Int8[ndarray, "n"], image: Int32[ndarray, "n"], label: Int32[ndarray, "n"]) -> None:
        """Keeps the annotations without a problem, sorted by image."""
        kept = np.flatnonzero(reason == 0)
        kept = kept[np.argsort(image[kept], kind="stable")]
        self.counts = np.bincount(image[kept], minlength=len(self.image_ids))
        self._first = np.concatenate([[0], np.cumsum(self.counts)])
        self._boxes = np.frombuffer(rows.box, np.float64).reshape(-1, 4)[kept]
        self._areas = np.frombuffer(rows.area, np.float64)[kept]
        self._labels, self._crowd = label[kept], np.frombuffer(rows.crowd, np.bool_)[kept]

        polygon_count = np.frombuffer(rows.polygon_count, np.int32)
        self._polygon_count = polygon_count[kept]
        self._first_polygon = (np.cumsum(polygon_count, dtype=np.int64) - polygon_count)[kept]
        self._polygons = rows.polygons
        rle = np.full(len(reason), -1, np.int32)
        rle[np.frombuffer(rows.rle_row, np.int32)] = np.arange(len(rows.rles))
        self._rle_number, self._rles = rle[kept], rows.rles

    def _count_skipped(self, rows: Rows, reason: Int8[ndarray, "n"]) -> None:
        """Counts the annotations that are left out, and describes the first for each reason."""
        self.skipped, self.first_skipped = {}, {}
        counts = np.bincount(reason, minlength=len(Reason))
        counts[Reason.NO_OBJECT] = rows.without_object
        for number in (np.flatnonzero(counts[1:]) + 1).tolist():
            words = _DESCRIPTIONS[Reason(number)]
            self.skipped[words] = int(counts[number])
            self.first_skipped[words] = (
                f"annotations[{rows.first_without}]"
                if number == Reason.NO_OBJECT
                else _describe_row(rows, int(np.argmax(reason == number)))
            )

    def objects(self, image: int) -> Objects:
        """Returns the annotations of one image, in the file's order, with masks as compressed RLE.

        If the file has no area, the area is that of the mask, or of the box without masks.
        """
        rows = range(int(self._first[image]), int(self._first[image + 1]))
        span = slice(rows.start, rows.stop)
        size = [int(side) for side in self.picture_sizes[image]]
        polygons = [self._polygons_of(row) for row in rows] if self._masks else None
        rles = None if polygons is None else [self._rle(row, size, own) for row, own in zip(rows, polygons, strict=True)]
        boxes, areas = self._boxes[span].copy(), self._areas[span].copy()
        for row in np.flatnonzero(np.isnan(areas)):
            areas[row] = boxes[row, 2] * boxes[row, 3] if rles is None else coco_mask.area(rles[row])
        return Objects(
            boxes=boxes,
            classes=self._labels[span].copy(),
            crowd=self._crowd[span].copy(),
            areas=areas,
            rles=rles,
            polygons=polygons,
        )

    def _polygons_of(self, row: int) -> ObjectPolygons:
        if self._rle_number[row] >= 0:
            return None
        first = int(self._first_polygon[row])
        return [self._polygons[number] for number in range(first, first + int(self._polygon_count[row]))]

    def _rle(self, row: int, size: list[int], polygons: ObjectPolygons) -> dict[str, Any]:
        if polygons is None:
            return {"size": size, "counts": self._rles[self._rle_number[row]]}
        return coco_mask.merge(coco_mask.frPyObjects(polygons, *size))


def _describe_row(rows: Rows, row: int) -> str:
    number, image = rows.number[row], rows.image[row]
    return f"annotation {number} of image {image}" if rows.named[row] else f"annotations[{number}] of image {image}"
