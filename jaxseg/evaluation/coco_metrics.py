"""COCO's metrics, computed by pycocotools; detections in COCO's results format; tables."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# The names of boxes and masks in pycocotools.
_KINDS = {"box": "bbox", "mask": "segm"}
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_THRESHOLDS = tuple(range(50, 100, 5))


class CocoResults(NamedTuple):
    """Detections in COCO's results format, with the category ids of the dataset.

    Attributes:
        boxes: `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
        masks: `{"image_id", "category_id", "segmentation": {"size", "counts"}, "score"}`;
            None if the detector has no masks.
        image_ids: the ids of all images, including those without detections.
    """

    boxes: list[dict[str, Any]]
    masks: list[dict[str, Any]] | None
    image_ids: list[int]


def coco_results(
    image_id: int,
    *,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    mask_scores: np.ndarray | None = None,
    rles: Sequence[dict[str, Any]] | None,
    category_ids: Sequence[int],
) -> CocoResults:
    """Converts the detections of one image to COCO's results format.

    Boxes without area, which lie outside of the picture, are left out, as in YOLACT's original.

    Args:
        image_id: the id of the image in the dataset.
        boxes: `[n, 4]`, `x1, y1, x2, y2` in pixels of the picture.
        classes: `[n]`, 0 .. C-1.
        scores: `[n]`.
        mask_scores: `[n]`, the scores of the masks; None if these are `scores`.
        rles: n compressed run lengths, or None if the detector has no masks.
        category_ids: the dataset's id of each class.
    """
    box_results: list[dict[str, Any]] = []
    mask_results: list[dict[str, Any]] = []
    for i, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64)):
        if x2 <= x1 or y2 <= y1:
            continue
        common = {"image_id": int(image_id), "category_id": int(category_ids[int(classes[i])])}
        # Thousandths of a pixel suffice and keep the files small.
        box = [round(float(v), 3) for v in (x1, y1, x2 - x1, y2 - y1)]
        box_results.append({**common, "score": float(scores[i]), "bbox": box})
        if rles is not None:
            mask_score = scores[i] if mask_scores is None else mask_scores[i]
            mask_results.append({**common, "score": float(mask_score), "segmentation": rles[i]})
    return CocoResults(box_results, None if rles is None else mask_results, [int(image_id)])


def merge_results(parts: Sequence[CocoResults]) -> CocoResults:
    """Concatenates results in their order."""
    masks = None if any(part.masks is None for part in parts) else [row for part in parts for row in part.masks or ()]
    return CocoResults([row for part in parts for row in part.boxes], masks, [row for part in parts for row in part.image_ids])


def coco_metrics(
    ground_truth: Mapping[str, Any], results: CocoResults, category_ids: Sequence[int], class_names: Sequence[str]
) -> dict[str, float]:
    """Computes COCO's metrics over the images of `results`.

    The keys, where `kind` is `box` or `mask`, are `kind/AP` (the mean over IoU .50 to .95),
    `kind/AP50` to `kind/AP95` in steps of 5, `kind/APs`, `APm` and `APl` by size, `kind/AR1`,
    `AR10`, `AR100`, `ARs`, `ARm` and `ARl`, and for each class `kind/AP/name` and `kind/AP50/name`.
    Classes without objects are left out of all means. (The mAP of YOLACT's original differs: it
    counts such classes as 0, does not ignore crowds, and drops thin objects.)

    Args:
        ground_truth: a dataset in COCO's JSON form, with the sizes of the images, and with masks if
            `results` has masks.
        results: the detections; without any, every AP is 0.
        category_ids: the dataset's id of each class.
        class_names: the name of each class.

    Returns:
        The metrics, each in 0..1, or NaN if there is no object to find.
    """
    metrics: dict[str, float] = {}
    for kind, rows in (("box", results.boxes), ("mask", results.masks)):
        if rows is None:
            continue
        # pycocotools prints to stdout and changes the annotations that it is given.
        with contextlib.redirect_stdout(io.StringIO()):
            truth = _index(ground_truth, [dict(annotation) for annotation in ground_truth["annotations"]])
            found = _index(ground_truth, _as_annotations(rows, kind))
            evaluation = COCOeval(truth, found, _KINDS[kind])
            evaluation.params.imgIds = sorted(set(results.image_ids))
            evaluation.params.catIds = list(category_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        metrics |= {f"{kind}/{name}": _nan_if_absent(value) for name, value in zip(_SUMMARY, evaluation.stats, strict=True)}
        # The axes are thresholds, recalls and classes, for all sizes and the most detections.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        metrics |= {f"{kind}/AP{percent}": _mean(precision[i]) for i, percent in enumerate(_THRESHOLDS)}
        for i, name in enumerate(class_names):
            metrics[f"{kind}/AP/{name}"] = _mean(precision[:, :, i])
            metrics[f"{kind}/AP50/{name}"] = _mean(precision[0, :, i])
    return metrics


def main_metric(metrics: Mapping[str, float], prefix: str = "") -> float:
    """Returns the metric that decides on the best checkpoint: mask AP, or box AP without masks."""
    return metrics[f"{prefix}mask/AP"] if f"{prefix}mask/AP" in metrics else metrics[f"{prefix}box/AP"]


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """Makes pycocotools' index of annotations; its own `loadRes` fails for an empty list."""
    coco = COCO()
    coco.dataset = {"images": ground_truth["images"], "categories": ground_truth["categories"], "annotations": annotations}
    coco.createIndex()
    return coco


def _as_annotations(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Adds to detections what pycocotools needs of an annotation: an id, an area, no crowd."""

    def area(row: Mapping[str, Any]) -> float:
        return row["bbox"][2] * row["bbox"][3] if kind == "box" else float(coco_mask.area(row["segmentation"]))

    return [{**row, "id": i + 1, "area": area(row), "iscrowd": 0} for i, row in enumerate(results)]


def _mean(precision: np.ndarray) -> float:
    present = precision[precision > -1]
    return float(present.mean()) if present.size else math.nan


def _nan_if_absent(value: float) -> float:
    return float(value) if value > -1 else math.nan


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def threshold_table(metrics: Mapping[str, float]) -> str:
    """Formats AP in percent as the original's table.

    The rows are box and mask, the columns the mean and each IoU threshold; "-" stands for NaN.
    """
    lines = [" " * 5 + "".join(f"{name:>7}" for name in ("all", *(f".{percent}" for percent in _THRESHOLDS)))]
    for kind in _KINDS:
        if f"{kind}/AP" in metrics:
            values = (metrics[f"{kind}/{name}"] for name in ("AP", *(f"AP{percent}" for percent in _THRESHOLDS)))
            lines.append(f"{kind:<5}" + "".join(f"{_percent(value):>7}" for value in values))
    return "\n".join(lines)


def class_table(metrics: Mapping[str, float], class_names: Sequence[str]) -> str:
    """Formats AP and AP50 of each class in percent; "-" stands for a class without objects."""
    columns = [(f"{kind} {name}", f"{kind}/{name}") for kind in _KINDS if f"{kind}/AP" in metrics for name in ("AP", "AP50")]
    width = max(len(name) for name in ("class", *class_names))
    lines = [f"{'class':<{width}}" + "".join(f"{title:>10}" for title, _ in columns)]
    for name in class_names:
        lines.append(f"{name:<{width}}" + "".join(f"{_percent(metrics[f'{key}/{name}']):>10}" for _, key in columns))
    return "\n".join(lines)
