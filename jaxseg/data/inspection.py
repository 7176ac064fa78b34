"""The inspection of a dataset: its content, its errors, and the images that a model sees."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from pycocotools import mask as coco_mask

from jaxseg.config import Config
from jaxseg.data.sources.from_config import DataError, InstanceDataset, Objects, Sample, Split
from jaxseg.data.views.from_spec import view_rule
from jaxseg.data.views.view import View
from jaxseg.models import build_model
from jaxseg.pictures import write_picture
from jaxseg.structures import InputSpec
from jaxseg.visualization import draw

logger = logging.getLogger(__name__)

# COCO's upper limits for the area of small and medium objects, in square pixels.
_SMALL, _MEDIUM = 32**2, 96**2
# A box is reported if it extends beyond the image by more pixels; annotation tools round.
_OVER_THE_EDGE = 1.0
_NAMES_SHOWN = 5
_PIXELS_ONLY = "polygons must be in pixels, not in fractions of the image's width and height"
_PROGRESS_EVERY = 10_000


@dataclasses.dataclass
class Report:
    """The results of `inspect_dataset`.

    Attributes:
        images: the number of images.
        objects, crowds: the numbers of ordinary objects and of crowd regions of each class.
        sizes: the number of ordinary objects in each of COCO's area ranges.
        without_objects: the number of images without annotations.
        too_many: the number of images with more objects than a batch has rows for.
        most_objects: the largest number of objects in an image.
        boxes_outside: the number of boxes that extend more than a pixel beyond the image's edge.
        empty_masks: the number of objects and crowd regions whose mask has no pixel; 0 if the
            dataset has no masks.
        largest_mask: the number of pixels of the largest mask; 0 if the dataset has no masks.
        broken: one sentence for each image that cannot be used.
    """

    images: int
    objects: Int64[ndarray, "C"]
    crowds: Int64[ndarray, "C"]
    sizes: dict[str, int]
    without_objects: int
    too_many: int
    most_objects: int
    boxes_outside: int
    empty_masks: int
    largest_mask: int
    broken: list[str]


def inspect_dataset(dataset: InstanceDataset, max_objects: int) -> Report:
    """Opens every image and, if the dataset has masks, every mask, and counts what it finds."""
    classes = len(dataset.class_names)
    report = Report(
        images=len(dataset),
        objects=np.zeros(classes, np.int64),
        crowds=np.zeros(classes, np.int64),
        sizes={"small": 0, "medium": 0, "large": 0},
        without_objects=int((dataset.object_counts == 0).sum()),
        too_many=int((dataset.object_counts > max_objects).sum()),
        most_objects=int(dataset.object_counts.max(initial=0)),
        boxes_outside=0,
        empty_masks=0,
        largest_mask=0,
        broken=[],
    )
    for index, (objects, problem) in enumerate(_read_all(dataset)):
        if problem:
            report.broken.append(problem)
        _count(report, objects, dataset.picture_sizes[index])
        if (index + 1) % _PROGRESS_EVERY == 0:
            logger.info("%d of %d images", index + 1, len(dataset))
    return report


def _read_all(dataset: InstanceDataset) -> Iterator[tuple[Objects, str]]:
    """Yields the annotations of each image and the error of its file; reads files in parallel."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        # The images are read in portions, because one `map` would keep all results in memory.
        for start in range(0, len(dataset), 64 * workers):
            yield from pool.map(lambda i: _read(dataset, i), range(start, min(start + 64 * workers, len(dataset))))


def _read(dataset: InstanceDataset, index: int) -> tuple[Objects, str]:
    objects = dataset.objects(index)
    try:
        dataset.image(index)
    except DataError as error:
        return objects, str(error)
    return objects, ""


def _count(report: Report, objects: Objects, size: ndarray) -> None:
    report.objects += np.bincount(objects.classes[~objects.crowd], minlength=len(report.objects))
    report.crowds += np.bincount(objects.classes[objects.crowd], minlength=len(report.crowds))
    areas = objects.areas[~objects.crowd]
    for name, count in zip(report.sizes, np.histogram(areas, [0, _SMALL, _MEDIUM, np.inf])[0], strict=True):
        report.sizes[name] += int(count)
    over = (objects.corners[:, :2] < -_OVER_THE_EDGE) | (objects.corners[:, 2:] > size[::-1] + _OVER_THE_EDGE)
    report.boxes_outside += int(over.any(axis=1).sum())
    # The masks are measured one by one, because pycocotools fails for 256 or more at once.
    pixels = [int(coco_mask.area(rle)) for rle in objects.rles or ()]
    report.empty_masks += pixels.count(0)
    report.largest_mask = max(report.largest_mask, *pixels, 0)


def describe(report: Report, dataset: InstanceDataset, max_objects: int) -> str:
    """Formats the report as text: a table of the classes, and a line for each other result."""
    wide = max(map(len, (*dataset.class_names, "class")))
    lines = [f"{'id':>5}  {'class':<{wide}}  {'objects':>8}  {'crowds':>8}"]
    for label, name in enumerate(dataset.class_names):
        lines.append(f"{dataset.category_ids[label]:>5}  {name:<{wide}}  {report.objects[label]:>8}  {report.crowds[label]:>8}")
    lines.append(f"{'':>5}  {'all':<{wide}}  {report.objects.sum():>8}  {report.crowds.sum():>8}")
    lines.append("")
    lines.append(
        "objects by area: " + ", ".join(f"{count} {name}" for name, count in report.sizes.items()) + " (limits 32 x 32 and 96 x 96 pixels)"
    )
    left_out = f"; {dataset.left_out} more without objects are left out (data.keep_empty keeps them)" if dataset.left_out else ""
    lines.append(f"images: {report.images}, of which {report.without_objects} without objects{left_out}")
    lines.append(
        f"images with more objects than data.max_objects = {max_objects}: {report.too_many} (the fullest has {report.most_objects})"
    )
    lines.append(f"boxes that reach over the image's edge: {report.boxes_outside}")
    lines.append(_describe_masks(report) if dataset.has_masks else "masks: not looked at, the detector has none")
    lines.append(f"broken images: {len(report.broken)}")
    lines += [f"  {problem}" for problem in report.broken[:_NAMES_SHOWN]]
    if len(report.broken) > _NAMES_SHOWN:
        lines.append(f"  and {len(report.broken) - _NAMES_SHOWN} more")
    lines += [f"skipped at opening: {count} {what}" for what, count in dataset.skipped.items()]
    return "\n".join(lines)


def _describe_masks(report: Report) -> str:
    if not report.empty_masks:
        return "empty masks: 0"
    return (
        f"empty masks: {report.empty_masks} of {report.objects.sum() + report.crowds.sum()} (warning: they have no pixel; {_PIXELS_ONLY})"
    )


def check_usable(report: Report, split: Split) -> None:
    """Checks that a detector can learn from the images.

    Raises:
        DataError: there are no images, or none of them can be read, or no mask has more than one
            pixel.
    """
    if not report.images:
        raise DataError(f"There are no {split} images with objects.")
    if len(report.broken) == report.images:
        raise DataError(f"None of the {report.images} {split} images can be read; the first: {report.broken[0]}")
    # Polygons whose coordinates are fractions of the image's size cover at most the first pixel.
    if (report.empty_masks or report.largest_mask) and report.largest_mask <= 1:
        masks = f"the {report.objects.sum() + report.crowds.sum()} masks of the {split} images"
        raise DataError(f"None of {masks} has more than one pixel, and {report.empty_masks} have none; {_PIXELS_ONLY}.")


def draw_samples(config: Config, dataset: InstanceDataset, split: str, count: int, folder: Path) -> list[Path]:
    """Draws `count` samples as the model sees them; training images are augmented at random.

    Each drawing is written to `folder` and has the image's id in its name. Images that cannot be
    read are skipped.

    Raises:
        OSError: a picture cannot be written.
    """
    rule = view_rule(build_model(config).input_spec)
    rng = np.random.default_rng(config.train.seed)
    names = [*dataset.class_names, *(f"{name} (crowd)" for name in dataset.class_names)]
    written: list[Path] = []
    for index in rng.permutation(len(dataset)):
        if len(written) == count:
            break
        try:
            sample = dataset[index]
        except DataError:
            continue
        if split == "train":
            view = rule.draw(rng, sample.picture_size, boxes=sample.boxes, crowd=sample.crowd, augment=config.data.augment)
        else:
            view = rule.whole(sample.picture_size)
        sample = as_seen(sample, view, rule.spec)
        labels = sample.classes + len(dataset.class_names) * sample.crowd
        masks = None if sample.masks is None else sample.masks.astype(bool)
        written.append(folder / f"{split}_{dataset.image_ids[index]}.jpg")
        write_picture(written[-1], draw(sample.image, sample.boxes, labels, names, masks=masks))
    return written


def as_seen(sample: Sample, view: View, spec: InputSpec) -> Sample:
    """Converts a sample to the network's input, with continuous boxes and full-size masks."""
    rows = np.flatnonzero(view.keeps(sample.boxes))
    boxes = view.boxes_in_input(sample.boxes[rows])
    boxes[:, 2:] += spec.pixel_offset
    return Sample(
        image=view.training_image(sample.image),
        boxes=boxes,
        classes=sample.classes[rows],
        crowd=sample.crowd[rows],
        masks=None if sample.masks is None else view.masks_over_input(sample.masks, rows, view.input_size).astype(np.uint8),
        index=sample.index,
    )
