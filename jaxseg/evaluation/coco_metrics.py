"""COCO's metrics by pycocotools, results in COCO's JSON form, and the tables users of YOLACT read."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# pycocotools calls them bbox and segm.
_KINDS = {"box": "bbox", "mask": "segm"}
_SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_THRESHOLDS = tuple(range(50, 100, 5))


class CocoResults(NamedTuple):
    """Detections in COCO's results format, category ids as in the dataset.

    Attributes:
        boxes: `{"image_id", "category_id", "bbox": [x, y, width, height], "score"}`.
        masks: `{"image_id", "category_id", "segmentation": {"size", "counts"}, "score"}`;
            None where the detector has no masks.
        image_ids: the images looked at, those without detections, too.
    """

    boxes: list[dict[str, Any]]
    masks: list[dict[str, Any]] | None
    image_ids: list[int]


def coco_results(
    image_id: int,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    rles: Sequence[dict[str, Any]] | None,
    category_ids: Sequence[int],
) -> CocoResults:
    """The detections of one image. Boxes without area (all of them outside the picture) are left out, as the original does.

    Args:
        image_id: of the dataset.
        boxes: `[n, 4]`, `x1, y1, x2, y2` in pixels of the picture.
        classes: `[n]`, 0 .. C-1.
        scores: `[n]`.
        rles: n compressed run lengths, or None where the detector has no masks.
        category_ids: the dataset's id of each class.
    """
    box_results: list[dict[str, Any]] = []
    mask_results: list[dict[str, Any]] = []
    for i, (x1, y1, x2, y2) in enumerate(np.asarray(boxes, np.float64)):
        if x2 <= x1 or y2 <= y1:
            continue
        common = {"image_id": int(image_id), "category_id": int(category_ids[int(classes[i])]), "score": float(scores[i])}
        # Thousandths of a pixel are enough, and keep the files small.
        box_results.append({**common, "bbox": [round(float(v), 3) for v in (x1, y1, x2 - x1, y2 - y1)]})
        if rles is not None:
            mask_results.append({**common, "segmentation": rles[i]})
    return CocoResults(box_results, None if rles is None else mask_results, [int(image_id)])


def merge_results(parts: Sequence[CocoResults]) -> CocoResults:
    """Several results as one, in the order given."""
    masks = None if any(part.masks is None for part in parts) else [row for part in parts for row in part.masks or ()]
    return CocoResults([row for part in parts for row in part.boxes], masks, [row for part in parts for row in part.image_ids])


def coco_metrics(
    ground_truth: Mapping[str, Any], results: CocoResults, category_ids: Sequence[int], class_names: Sequence[str]
) -> dict[str, float]:
    """COCO's metrics over the images of `results`, 0..1; NaN where there is nothing to find.

    The keys, with `box` and `mask` for `kind`: `kind/AP` (mean over IoU .50 to .95), `kind/AP50` ... `kind/AP95` in steps
    of 5, `kind/APs`, `APm`, `APl` by size, `kind/AR1`, `AR10`, `AR100`, `ARs`, `ARm`, `ARl`, and for each class
    `kind/AP/name` and `kind/AP50/name`. A class without objects counts in no mean (the original's own
    mAP takes 0 for it, never ignores crowds and drops thin objects: its numbers differ from these).

    Args:
        ground_truth: a dataset in COCO's JSON form, with sizes of the images, and masks where `results` has them.
        results: detections; none at all is an AP of 0.
        category_ids: the dataset's id of each class.
        class_names: the name of each class.
    """
    metrics: dict[str, float] = {}
    for kind, rows in (("box", results.boxes), ("mask", results.masks)):
        if rows is None:
            continue
        # pycocotools talks on stdout, and writes into the annotations it is given.
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
        # Thresholds, recalls, classes; of all sizes, with the largest number of detections.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        metrics |= {f"{kind}/AP{percent}": _mean(precision[i]) for i, percent in enumerate(_THRESHOLDS)}
        for i, name in enumerate(class_names):
            metrics[f"{kind}/AP/{name}"] = _mean(precision[:, :, i])
            metrics[f"{kind}/AP50/{name}"] = _mean(precision[0, :, i])
    return metrics


def main_metric(metrics: Mapping[str, float], prefix: str = "") -> float:
    """What decides which of a detector's checkpoints is best: mask AP, or box AP where it has no masks."""
    return metrics[f"{prefix}mask/AP"] if f"{prefix}mask/AP" in metrics else metrics[f"{prefix}box/AP"]


def _index(ground_truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    """pycocotools' view of annotations (its `loadRes` cannot take an empty list)."""
    coco = COCO()
    coco.dataset = {"images": ground_truth["images"], "categories": ground_truth["categories"], "annotations": annotations}
    coco.createIndex()
    return coco


def _as_annotations(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Detections with what pycocotools wants of an annotation: an id, an area, no crowds."""

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
    """The original's table: AP in percent, rows box and mask, columns the mean and each IoU threshold; "-" for nothing to find."""
    lines = [" " * 5 + "".join(f"{name:>7}" for name in ("all", *(f".{percent}" for percent in _THRESHOLDS)))]
    for kind in _KINDS:
        if f"{kind}/AP" in metrics:
            values = (metrics[f"{kind}/{name}"] for name in ("AP", *(f"AP{percent}" for percent in _THRESHOLDS)))
            lines.append(f"{kind:<5}" + "".join(f"{_percent(value):>7}" for value in values))
    return "\n".join(lines)


def class_table(metrics: Mapping[str, float], class_names: Sequence[str]) -> str:
    """AP and AP50 of each class in percent; "-" for a class of which there is no object."""
    columns = [(f"{kind} {name}", f"{kind}/{name}") for kind in _KINDS if f"{kind}/AP" in metrics for name in ("AP", "AP50")]
    width = max(len(name) for name in ("class", *class_names))
    lines = [f"{'class':<{width}}" + "".join(f"{title:>10}" for title, _ in columns)]
    for name in class_names:
        lines.append(f"{name:<{width}}" + "".join(f"{_percent(metrics[f'{key}/{name}']):>10}" for _, key in columns))
    return "\n".join(lines)
