"""Looks through a dataset before a training does: what is in it, what is wrong with it, and how the model will see it.

    python -m jaxseg.commands.inspect --config configs/yolact_r50.py --config.data.root=data/coco [--split train] [--pictures 8]

Exit codes: 0 the dataset can be used, 1 it cannot, 2 the command or the config is wrong, or the pictures cannot be written.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from pycocotools import mask as coco_mask

from jaxseg.commands.run import run_command
from jaxseg.config import AugmentConfig, Config, ConfigError, load_config, parse_config_flags
from jaxseg.data.sources.from_config import DataError, InstanceDataset, Objects, Sample, Split, open_dataset, resolve_classes
from jaxseg.data.views.placement import Placement, place_picture, placed_sample, training_picture
from jaxseg.data.views.transforms import evaluation_transform, to_uint8, training_transform
from jaxseg.files import make_folder
from jaxseg.models import build_model
from jaxseg.pictures import write_picture
from jaxseg.structures import InputSpec
from jaxseg.visualization import draw

# COCO's limits of small and medium objects, in pixels of area.
_SMALL, _MEDIUM = 32**2, 96**2
# How far a box may reach over the edge before it is told: annotation tools round.
_OVER_THE_EDGE = 1.0
_NAMES_SHOWN = 5
_PIXELS_ONLY = "polygons must be in pixels, not in fractions of the image's width and height"
_PROGRESS_EVERY = 10_000


@dataclasses.dataclass
class Report:
    """What `inspect_dataset` found.

    Attributes:
        images: how many.
        objects, crowds: of each class.
        sizes: ordinary objects by COCO's area ranges.
        without_objects: images without any annotation.
        too_many: images with more objects than the padding holds.
        most_objects: the largest number of objects in an image.
        boxes_outside: boxes that reach more than a pixel over the image's edge.
        empty_masks: objects and crowds whose mask has no pixel; 0 without masks.
        largest_mask: pixels of the largest mask; 0 without masks.
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
    """Opens every image, and every mask where the dataset has masks, and counts."""
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
        _count(report, objects, dataset.image_sizes[index])
        if (index + 1) % _PROGRESS_EVERY == 0:
            print(f"{index + 1} of {len(dataset)} images", file=sys.stderr)
    return report


def _read_all(dataset: InstanceDataset) -> Iterator[tuple[Objects, str]]:
    """Annotations of each image, and what is wrong with its file; OpenCV decodes outside of Python's lock."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        # In portions, for the pool's own `map` would hold all results at once.
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
    # One by one: pycocotools cannot take 256 or more at once.
    pixels = [int(coco_mask.area(rle)) for rle in objects.rles or ()]
    report.empty_masks += pixels.count(0)
    report.largest_mask = max(report.largest_mask, *pixels, 0)


def describe(report: Report, dataset: InstanceDataset, max_objects: int) -> str:
    """The report as text: a table of the classes, and a line for each thing worth knowing."""
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
    """Refuses images that nothing can be learnt from.

    Raises:
        DataError: there are none, or none of them can be read, or their masks have one pixel at most.
    """
    if not report.images:
        raise DataError(f"There are no {split} images with objects.")
    if len(report.broken) == report.images:
        raise DataError(f"None of the {report.images} {split} images can be read; the first: {report.broken[0]}")
    # Polygons in fractions cover the first pixel at most.
    if (report.empty_masks or report.largest_mask) and report.largest_mask <= 1:
        masks = f"the {report.objects.sum() + report.crowds.sum()} masks of the {split} images"
        raise DataError(f"None of {masks} has more than one pixel, and {report.empty_masks} have none; {_PIXELS_ONLY}.")


def draw_samples(config: Config, dataset: InstanceDataset, split: str, count: int, folder: Path) -> list[Path]:
    """Draws `count` samples as the model sees them: training images after a random augmentation, validation images resized.

    The file's name, in `folder`, tells the image's id. Images that cannot be read are passed over.

    Raises:
        OSError: a picture cannot be written.
    """
    spec = build_model(config).input_spec
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
        sample = _as_seen(sample, spec, config.data.augment, rng if split == "train" else None)
        labels = sample.classes + len(dataset.class_names) * sample.crowd
        masks = None if sample.masks is None else sample.masks.astype(bool)
        written.append(folder / f"{split}_{dataset.image_ids[index]}.jpg")
        write_picture(written[-1], draw(sample.image, sample.boxes, masks, labels, None, names))
    return written


def _as_seen(sample: Sample, spec: InputSpec, augment: AugmentConfig, rng: np.random.Generator | None) -> Sample:
    """The sample in the network's input: augmented by `rng` in training, whole without it; the image uint8."""
    if spec.resize.rule == "stretch":
        if rng is not None:
            return training_transform(sample, rng, augment, spec.image_sizes[0])
        sample = evaluation_transform(sample, spec.image_sizes[0])
        return dataclasses.replace(sample, image=to_uint8(sample.image))
    if rng is not None:
        image, placement = training_picture(sample.image, rng, spec, augment)
    else:
        placement = Placement.whole(sample.image.shape[:2], spec)
        image = place_picture(sample.image, placement, spec)
    return placed_sample(sample, image, placement, spec.pixel_offset)


def inspect_splits(config: Config, splits: Sequence[Split], pictures: int, folder: Path) -> dict[Split, int]:
    """Inspects the splits in turn; how many images of each can be used.

    Raises:
        ConfigError: `folder` cannot be made.
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
    """As `resolve_classes`, where classes that do not fit the config are a fault of the dataset."""
    try:
        return resolve_classes(config, dataset)
    except ConfigError as error:
        raise DataError(str(error)) from None


def inspect_split(config: Config, dataset: InstanceDataset, split: Split, pictures: int, folder: Path) -> int:
    """Prints the report of one split and draws its pictures; how many images can be used.

    Raises:
        ConfigError: `folder` cannot be made.
        DataError: see `check_usable`.
    """
    if pictures:
        # Before the work, not after it.
        make_folder(folder, "--output", ConfigError)
    report = inspect_dataset(dataset, config.data.max_objects)
    print(f"\n{split}\n{describe(report, dataset, config.data.max_objects)}")
    check_usable(report, split)
    if pictures:
        written = draw_samples(config, dataset, split, pictures, folder)
        print(f"{len(written)} pictures of what the model sees: {folder}")
    return report.images - len(report.broken)


def main(arguments: list[str]) -> int:
    """The command line."""
    return run_command(lambda: _run(arguments))


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
    sys.exit(main(sys.argv[1:]))
