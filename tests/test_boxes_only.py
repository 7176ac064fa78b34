"""Datasets whose annotations have boxes and no masks.

Detectors without masks use all annotations, and detectors with masks use none.
"""

import dataclasses
import json
import logging
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import white_boxes
from tiny_coco import BAD_ANNOTATIONS, HEIGHT, WIDTH, annotation, open_one, write_dataset
from white_boxes import PaddedDetector, WhiteBoxDetector

from jaxseg.commands.inspect import main
from jaxseg.config import MIRROR_ONLY, Config, ConfigError, override, to_dict
from jaxseg.data.inspection import as_seen
from jaxseg.data.sources import dataset as dataset_module
from jaxseg.data.sources.from_config import CocoDataset, DataError, Sample, open_dataset
from jaxseg.data.sources.tfds_coco import write_shards
from jaxseg.data.stream.evaluation import evaluation_batches
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.stream.training import training_iterator
from jaxseg.data.views.from_spec import view_rule
from jaxseg.evaluation.coco_metrics import CocoResults, coco_metrics
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.models import InputConfig, RcnnConfig, RetinaNetConfig, YolactConfig, build_model
from jaxseg.structures import InputSpec, Resize

INPUT = InputConfig(shorter_side=(32,), longer_side=64, shapes=((32, 64),))
DETECTORS = {
    "YOLACT": (YolactConfig(num_classes=3), True),
    "Mask R-CNN": (RcnnConfig(num_classes=3, input=INPUT), True),
    "Faster R-CNN": (RcnnConfig(num_classes=3, input=INPUT, masks=False), False),
    "RetinaNet": (RetinaNetConfig(num_classes=3, input=INPUT), False),
}


def config_of(name: str, root: Path, **changes) -> Config:
    """Returns a detector's configuration with the dataset that `write_dataset` wrote to `root`."""
    files = {f"data.{split}_annotations": "a.json" for split in ("train", "val")}
    files |= {f"data.{split}_images": "images" for split in ("train", "val")}
    augment = {} if name == "YOLACT" else {"data.augment": MIRROR_ONLY}
    names = {"data.class_names": ("two", "five", "nine"), "data.category_ids": (2, 5, 9), "data.workers": 0}
    return override(
        Config(model=YolactConfig()), {"model": DETECTORS[name][0], "data.root": str(root), **names, **files, **augment, **changes}
    )


def without_segmentation(**changes) -> dict:
    return annotation(segmentation=None, **changes)


# ---- The annotations that can be used ----


@pytest.mark.parametrize("segmentation", [None, []])
def test_a_box_is_enough_where_nobody_wants_masks(tmp_path, segmentation):
    dataset = open_one(tmp_path, annotation(segmentation=segmentation), annotation(segmentation=segmentation, iscrowd=1), masks=False)
    assert not dataset.skipped
    assert not dataset.has_masks
    assert dataset.objects(0).rles is None
    sample = dataset[0]
    assert sample.masks is None
    assert sample.boxes.tolist() == [[2, 3, 12, 13]] * 2
    assert sample.crowd.tolist() == [False, True]


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_only_what_is_wrong_with_boxes_counts_without_masks(tmp_path, name):
    """A bad segmentation is ignored; every other error is reported as it is with masks."""
    bad, reason = BAD_ANNOTATIONS[name]
    dataset = open_one(tmp_path, bad, annotation(category_id=9), masks=False)
    about_masks = isinstance(bad, dict) and {**annotation(), "segmentation": None} == {**bad, "segmentation": None}
    assert len(dataset.objects(0).boxes) == 1 + about_masks
    assert [(reason in told, count) for told, count in dataset.skipped.items()] == ([] if about_masks else [(True, 1)])


def test_with_masks_a_box_alone_is_left_out_with_a_reason_that_says_who_needs_more(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "jaxseg"):
        dataset = open_one(tmp_path, without_segmentation(), annotation())
    assert len(dataset.objects(0).boxes) == 1
    assert "skipped 1 annotations without segmentation, which a detector with masks needs" in caplog.text


def test_an_area_that_the_file_has_not_is_that_of_the_box(tmp_path):
    dataset = open_one(tmp_path, without_segmentation(area=None), without_segmentation(area=42), masks=False)
    assert dataset.objects(0).areas.tolist() == [100, 42]


@pytest.mark.parametrize("name", DETECTORS)
def test_the_kind_of_detector_decides(tmp_path, name):
    write_dataset(tmp_path, [without_segmentation()])
    config, (model, has_masks) = config_of(name, tmp_path), DETECTORS[name]
    assert model.has_masks == has_masks == (build_model(config).input_spec.mask_size is not None)
    if has_masks:
        with pytest.raises(DataError, match=r"no image with a usable annotation.*without segmentation, which a detector with masks needs"):
            open_dataset(config, "train")
    else:
        first = open_dataset(override(config, {"data.limit_images": 1}), "train")
        assert not first.has_masks
        assert first[0].masks is None


# ---- The batches ----


def test_masks_are_not_decoded_where_nobody_wants_them(tmp_path, monkeypatch):
    write_dataset(tmp_path, [annotation()])
    decoded = []
    monkeypatch.setattr(dataset_module, "decode_masks", lambda rles, size: decoded.append(len(rles)) or np.zeros((1, *size), np.uint8))
    assert open_dataset(config_of("Faster R-CNN", tmp_path), "train")[0].masks is None
    assert not decoded
    assert open_dataset(config_of("Mask R-CNN", tmp_path), "train")[0].masks is not None
    assert decoded == [1]


@pytest.mark.parametrize("name", ["Faster R-CNN", "RetinaNet"])
def test_batches_are_the_same_with_and_without_segmentations(tmp_path, name):
    entries = [annotation(), annotation(bbox=[10.5, 0, 18.25, 7], category_id=9), annotation(bbox=[0, 0, 30, 20], iscrowd=1)]
    batches = {}
    for kind, rows in (("masks", entries), ("boxes", [{k: v for k, v in entry.items() if k != "segmentation"} for entry in entries])):
        (tmp_path / kind).mkdir()
        write_dataset(tmp_path / kind, rows)
        config = config_of(name, tmp_path / kind, **{"train.batch_size": 2})
        spec = build_model(config).input_spec
        iterator = training_iterator(config, spec, seed=3)
        batches[kind] = [next(iterator), *evaluation_batches(open_dataset(config, "val"), spec, batch_size=1, max_objects=5)]
        iterator.close()
    assert batches["boxes"][0].targets.masks is None
    assert batches["boxes"][0].targets.valid.sum() == 6
    for one, other in zip(*batches.values(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def boxes_only() -> Sample:
    boxes = np.array([[4, 6, 20, 18], [3, 3, 3.2, 9]], np.float32)
    return Sample(np.full((20, 30, 3), 90, np.uint8), boxes, np.array([1, 0], np.int32), np.zeros(2, bool), None, 0)


def test_a_detector_with_masks_cannot_learn_from_a_dataset_opened_without():
    """This holds for both rules of views."""
    stretched = InputSpec(((32, 32),), (8, 8), None, 3)
    for spec in (stretched, InputSpec(((32, 64),), (8, 8), None, 3, Resize("opencv", (32,), 64), "box")):
        with pytest.raises(ValueError, match="learns masks, but its dataset was opened without"):
            to_targets(boxes_only(), view_rule(spec).whole((20, 30)), spec, 4)
        without = dataclasses.replace(spec, mask_size=None)
        assert to_targets(boxes_only(), view_rule(without).whole((20, 30)), without, 4).masks is None


def test_samples_as_the_network_sees_them_have_no_masks_either():
    stretch = InputSpec(((40, 40),), (8, 8), None, 3)
    stretched = as_seen(boxes_only(), view_rule(stretch).whole((20, 30)), stretch)
    assert stretched.masks is None
    np.testing.assert_allclose(stretched.boxes[0], [4 * 4 / 3, 12, 20 * 4 / 3, 36], rtol=1e-6)
    place = InputSpec(((64, 96),), (8, 8), None, 3, Resize("opencv", (40,), 60), "box")
    placed = as_seen(boxes_only(), view_rule(place).whole((20, 30)), place)
    assert placed.masks is None
    # The thin object is left out.
    assert placed.boxes.tolist() == [[8, 12, 40, 36]]


# ---- The evaluation ----


def test_the_ground_truth_has_no_segmentation_and_the_metrics_of_boxes_need_none(tmp_path):
    dataset = open_one(tmp_path, without_segmentation(area=None), without_segmentation(bbox=[15, 3, 12, 10], iscrowd=1), masks=False)
    truth = json.loads(json.dumps(dataset.coco_ground_truth()))
    assert [sorted(row) for row in truth["annotations"]] == [["area", "bbox", "category_id", "id", "image_id", "iscrowd"]] * 2
    # The first detection is in the crowd region and is ignored; the second one is the object.
    boxes = [([16, 4, 5, 5], 0.9), ([2, 3, 10, 10], 0.8)]
    found = [{"image_id": 1, "category_id": 5, "bbox": box, "score": score} for box, score in boxes]
    metrics = coco_metrics(truth, CocoResults(found, None, [1]), dataset.category_ids, dataset.class_names)
    assert metrics["box/AP"] == metrics["box/APs"] == pytest.approx(1)


@pytest.fixture
def white_boxes_without_masks(tmp_path) -> CocoDataset:
    root = tmp_path / "white"
    white_boxes.write_dataset(root, 5)
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    path.write_text(json.dumps(content))
    return CocoDataset(path, root / "val2017", keep_empty=True, masks=False)


@pytest.mark.parametrize("has_masks", [False, True])
def test_an_evaluation_of_boxes_alone(white_boxes_without_masks, use_detector, has_masks):
    use_detector(WhiteBoxDetector() if has_masks else PaddedDetector(None))
    if has_masks:
        with pytest.raises(ConfigError, match="the dataset was opened without"):
            evaluate(white_boxes.CONFIG, white_boxes.VARIABLES, white_boxes_without_masks, batch_size=2)
    else:
        metrics = evaluate(white_boxes.CONFIG, white_boxes.VARIABLES, white_boxes_without_masks, batch_size=2)
        assert metrics["box/AP"] == pytest.approx(1)
        assert "mask/AP" not in metrics


# ---- The inspection and the shards ----


def test_the_inspection_counts_boxes_and_draws_them(tmp_path, capsys):
    write_dataset(tmp_path, [without_segmentation(), without_segmentation(bbox=[15, 3, 12, 10], iscrowd=1)])
    config = config_of("RetinaNet", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_dict(config)))
    assert main(["--config", str(path), "--output", str(tmp_path / "o"), "--split", "val"]) == 0
    text = capsys.readouterr().out
    assert "objects by area: 1 small, 0 medium, 0 large" in text
    assert "masks: not looked at, the detector has none" in text
    assert "skipped" not in text
    picture = cv2.imread(str(tmp_path / "o" / "val_1.jpg")).astype(int)
    inside, edge = picture[90, 50], picture[24:200, 16:96]
    assert np.abs(inside - 90).max() < 12, "no mask may be drawn"
    assert np.ptp(edge, axis=2).max() > 60, "the box must be drawn"


def test_shards_without_masks_give_the_samples_of_the_files(tmp_path):
    entries = [without_segmentation(area=None), without_segmentation(bbox=[15, 3, 12, 10], iscrowd=1, category_id=9)]
    write_dataset(tmp_path, entries)
    config = config_of("Faster R-CNN", tmp_path)
    write_shards(config, tmp_path / "shards")
    shards = {"data.format": "tfds", "data.root": str(tmp_path / "shards")}
    files, read = open_dataset(config, "val"), open_dataset(override(config, shards), "val")
    assert read.coco_ground_truth() == files.coco_ground_truth()
    for field in dataclasses.fields(Sample):
        np.testing.assert_array_equal(getattr(read[0], field.name), getattr(files[0], field.name))
    with pytest.raises(DataError, match="hold boxes without masks; a detector with masks needs shards that are written with its own"):
        open_dataset(override(config_of("Mask R-CNN", tmp_path), shards), "val")


def test_shards_with_masks_serve_detectors_without(tmp_path):
    write_dataset(tmp_path, [annotation()])
    write_shards(config_of("YOLACT", tmp_path), tmp_path / "shards")
    shards = {"data.format": "tfds", "data.root": str(tmp_path / "shards")}
    read = open_dataset(config_of("RetinaNet", tmp_path, **shards), "train")
    assert read.objects(0).rles is None
    assert read[0].masks is None
    assert read[0].image.shape == (HEIGHT, WIDTH, 3)
    assert read[0].boxes.tolist() == [[2, 3, 12, 13]]
    assert open_dataset(config_of("YOLACT", tmp_path, **shards), "train")[0].masks.sum() == 100
