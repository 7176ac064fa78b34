"""COCO's metrics, and results in COCO's format."""

import json
import math

import numpy as np
import pytest
from goldens import load_json

from jaxseg.config import Config, override
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.evaluation.coco_metrics import CocoResults, class_table, coco_metrics, coco_results, merge_results, threshold_table
from jaxseg.evaluation.masks import encode_rle
from jaxseg.models import YolactConfig

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def test_metrics_are_cocoevals(golden, capsys):
    data = load_json(golden / "yolact" / "functions" / "eval.json")
    results = CocoResults(data["bbox_detections"], data["mask_detections"], [image["id"] for image in data["gt_coco"]["images"]])
    before = json.dumps(data)
    metrics = coco_metrics(data["gt_coco"], results, [10, 20, 35, 77], ["c0", "c1", "c2", "c3"])
    for kind in ("box", "mask"):
        expected = [value if value > -1 else math.nan for value in data["cocoeval_stats"][kind]]
        np.testing.assert_allclose([metrics[f"{kind}/{name}"] for name in SUMMARY], expected, rtol=1e-9)
        # On this dataset the original's own mAP agrees if crowds keep their class.
        own = data["calc_map_crowd_keeps_class"][kind]
        ours = [100 * metrics[f"{kind}/AP{threshold}"] for threshold in range(50, 100, 5)]
        np.testing.assert_allclose(ours, [own[str(threshold)] for threshold in range(50, 100, 5)], atol=0.006)
    assert json.dumps(data) == before, "the caller's annotations were changed"
    assert capsys.readouterr().out == ""


def square(image_id, category_id, x, y, size, crowd=False):
    mask = np.zeros((60, 80), bool)
    mask[y : y + size, x : x + size] = True
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, size, size],
        "area": size * size,
        "iscrowd": int(crowd),
        "segmentation": encode_rle(mask[None])[0],
    }


def ground_truth(*annotations):
    return {
        "images": [{"id": number, "height": 60, "width": 80} for number in (1, 2)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "newt"}],
        "annotations": [{**annotation, "id": i + 1} for i, annotation in enumerate(annotations)],
    }


def detect_squares(image_id, *squares):
    """Returns results for squares, each given by its class, x, y, size and score."""
    boxes = [(x, y, x + size, y + size) for _, x, y, size, _ in squares]
    rles = [square(1, 5, x, y, size)["segmentation"] for _, x, y, size, _ in squares]
    return coco_results(
        image_id,
        boxes=np.array(boxes),
        classes=np.array([k for k, *_ in squares]),
        scores=np.array([s for *_, s in squares]),
        rles=rles,
        category_ids=(5, 9, 11),
    )


def test_right_detections_score_one_and_absent_classes_nothing():
    truth = ground_truth(square(1, 5, 4, 4, 20), square(2, 9, 10, 10, 40))
    results = merge_results([detect_squares(1, (0, 4, 4, 20, 0.9)), detect_squares(2, (1, 10, 10, 40, 0.8))])
    metrics = coco_metrics(truth, results, (5, 9, 11), ("cat", "dog", "newt"))
    for key in ("box/AP", "mask/AP", "mask/AP50", "mask/AP95", "box/AP/cat", "mask/AP50/dog", "box/APs", "mask/APm"):
        assert metrics[key] == pytest.approx(1.0), key
    for key in ("box/AP/newt", "mask/AP50/newt", "mask/APl"):
        assert math.isnan(metrics[key]), key
    assert threshold_table(metrics).splitlines()[2].split() == ["mask", *["100.00"] * 11]
    assert class_table(metrics, ("cat", "dog", "newt")).splitlines()[3].split() == ["newt", "-", "-", "-", "-"]


def test_mean_over_classes_and_thresholds():
    # The IoU of the dog's detection is 30 / 40, so it is correct at thresholds of .50 to .75.
    truth = ground_truth(square(1, 5, 4, 4, 20), square(2, 9, 10, 10, 40))
    box, label, score = np.array([[10, 10, 40, 50]]), np.array([1]), np.array([0.8])
    dog = coco_results(2, boxes=box, classes=label, scores=score, rles=None, category_ids=(5, 9, 11))
    results = merge_results([detect_squares(1, (0, 4, 4, 20, 0.9))._replace(masks=None), dog])
    metrics = coco_metrics(truth, results, (5, 9, 11), ("cat", "dog", "newt"))
    assert metrics["box/AP75"] == pytest.approx(1.0)
    assert metrics["box/AP80"] == pytest.approx(0.5)
    assert metrics["box/AP"] == pytest.approx((1 + 0.6) / 2)
    assert not any(key.startswith("mask") for key in metrics)
    assert "mask" not in threshold_table(metrics)
    assert "mask" not in class_table(metrics, ("cat", "dog", "newt"))


def test_no_detections_at_all_score_zero():
    truth = ground_truth(square(1, 5, 4, 4, 20))
    metrics = coco_metrics(truth, CocoResults([], [], [1, 2]), (5, 9, 11), ("cat", "dog", "newt"))
    assert metrics["box/AP"] == metrics["mask/AP"] == metrics["mask/AP/cat"] == metrics["box/AR100"] == 0
    assert math.isnan(metrics["mask/AP/dog"])


def test_no_objects_at_all_score_nothing():
    metrics = coco_metrics(ground_truth(), detect_squares(1, (0, 4, 4, 20, 0.9)), (5, 9, 11), ("cat", "dog", "newt"))
    assert all(math.isnan(value) for value in metrics.values())
    assert threshold_table(metrics).splitlines()[1].split() == ["box", *["-"] * 11]


def test_the_truth_scores_one_on_real_images(coco_mini):
    """Detecting all ordinary objects suffices, with polygons, both run lengths and crowds."""
    dataset = open_dataset(override(Config(model=YolactConfig()), {"data.root": str(coco_mini)}), "val")
    truth = dataset.coco_ground_truth()
    parts = []
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.objects(index)
        rows = np.flatnonzero(~objects.crowd)
        corners = np.concatenate([objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]], axis=1)[rows]
        rles = [{"size": objects.rles[row]["size"], "counts": objects.rles[row]["counts"].decode()} for row in rows]
        classes, scores = objects.classes[rows], np.ones(len(rows))
        ids = dataset.category_ids
        parts.append(coco_results(image_id, boxes=corners, classes=classes, scores=scores, rles=rles, category_ids=ids))
    metrics = coco_metrics(truth, merge_results(parts), dataset.category_ids, dataset.class_names)
    assert len(dataset) == 50
    for key in ("box/AP", "mask/AP", "mask/AP/person", "box/APs", "mask/APl"):
        assert metrics[key] == pytest.approx(1.0, abs=1e-9), key


def test_detections_in_a_crowd_are_no_mistakes():
    objects = square(1, 5, 4, 4, 20), square(1, 5, 30, 4, 40, crowd=True)
    results = detect_squares(1, (0, 34, 8, 20, 0.95), (0, 4, 4, 20, 0.9))
    assert coco_metrics(ground_truth(*objects), results, (5,), ("cat",))["mask/AP"] == pytest.approx(1.0)
    assert coco_metrics(ground_truth(objects[0]), results, (5,), ("cat",))["mask/AP"] == pytest.approx(0.5)


def test_only_the_images_looked_at_count():
    truth = ground_truth(square(1, 5, 4, 4, 20), square(2, 5, 10, 10, 40))
    results = detect_squares(1, (0, 4, 4, 20, 0.9))
    assert coco_metrics(truth, results, (5,), ("cat",))["box/AP"] == pytest.approx(1.0)
    assert coco_metrics(truth, results._replace(image_ids=[1, 2]), (5,), ("cat",))["box/AP"] == pytest.approx(51 / 101)


def test_results_have_cocos_form_and_no_boxes_without_area():
    boxes = np.array([[1.0, 2.0, 11.0, 22.0], [0.0, 5.0, 0.0, 9.0]])
    rles = encode_rle(np.zeros((2, 30, 30), bool))
    classes, scores = np.array([1, 0]), np.array([0.5, 0.4], np.float32)
    results = coco_results(7, boxes=boxes, classes=classes, scores=scores, rles=rles, category_ids=(5, 9))
    assert results.boxes == [{"image_id": 7, "category_id": 9, "score": 0.5, "bbox": [1.0, 2.0, 10.0, 20.0]}]
    assert results.masks == [{"image_id": 7, "category_id": 9, "score": 0.5, "segmentation": rles[0]}]
    assert results.image_ids == [7]
    json.dumps(results)
