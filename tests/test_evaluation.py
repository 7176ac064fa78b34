"""The evaluation of a dataset: batches, selected detections, and whole runs with known results."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import white_boxes
from pycocotools import mask as coco_mask
from white_boxes import CATEGORY_IDS, CLASS_NAMES, CONFIG, VARIABLES, PaddedDetector, WhiteBoxDetector

import jaxseg
from jaxseg.config import Config, ConfigError, override
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.data.views.from_spec import view_rule
from jaxseg.data.views.stretched import StretchedView
from jaxseg.data.views.window import Window
from jaxseg.evaluation.detect import Prepared, Selection, one_ahead, pad_batch, prepare, select, uniform_batches, with_nms
from jaxseg.evaluation.evaluator import evaluate
from jaxseg.evaluation.masks import decode_rle
from jaxseg.models import RcnnConfig
from jaxseg.structures import Detections


def test_select_keeps_what_is_above_the_threshold_best_first():
    detections = Detections(
        boxes=np.arange(32, dtype=np.float32).reshape(2, 4, 4),
        scores=np.array([[0.9, 0.5, 0.2, 0.0]] * 2, np.float32),
        classes=np.array([[3, 2, 1, 0]] * 2, np.int32),
        valid=np.array([[True] * 4, [True, True, True, False]]),
        masks=np.zeros((2, 4, 5, 5), np.float32),
    )
    assert select(detections, 0, Selection()).classes.tolist() == [3, 2, 1, 0]
    assert select(detections, 1, Selection()).classes.tolist() == [3, 2, 1]
    assert select(detections, 1, Selection(score_threshold=0.5)).classes.tolist() == [3]
    chosen = select(detections, 1, Selection(top_k=2))
    assert chosen.scores.tolist() == [pytest.approx(0.9), 0.5]
    assert chosen.boxes[0].tolist() == [16, 17, 18, 19]
    assert chosen.soft_masks.shape == (2, 5, 5)


@pytest.mark.parametrize(("options", "key"), [({"score_threshold": 1.5}, "score_threshold"), ({"top_k": -1}, "top_k")])
def test_a_selection_out_of_range_is_refused(options, key):
    with pytest.raises(ConfigError, match=key):
        Selection(**options)


def test_one_ahead_asks_for_the_next_before_giving_this():
    events = []

    def source():
        for i in range(3):
            events.append(f"start {i}")
            yield i

    for i in one_ahead(source()):
        events.append(f"use {i}")
    assert events == ["start 0", "start 1", "use 0", "start 2", "use 1", "use 2"]
    assert list(one_ahead([])) == []


def waiting(sizes):
    """Makes pictures that fill inputs of these sizes."""
    views = [StretchedView(size, size, Window.whole(size)) for size in sizes]
    return [Prepared(i, np.zeros((*view.input_size, 3), np.float32), view) for i, view in enumerate(views)]


def test_batches_have_pictures_of_one_input_size():
    wide, tall = (4, 6), (6, 4)
    pictures = waiting([wide, tall, wide, wide, tall, wide, wide])
    batches = [[picture.index for picture in batch] for batch in uniform_batches(pictures, 3)]
    assert batches == [[0, 2, 3], [1, 4], [5, 6]]
    assert list(uniform_batches([], 3)) == []


def test_a_batch_that_has_waited_long_enough_goes_without_being_full():
    wide, tall = (4, 6), (6, 4)
    asked = []

    def pictures():
        for picture in waiting([tall] + [wide] * 9):
            asked.append(picture.index)
            yield picture

    given = {}
    for batch in uniform_batches(pictures(), 2, patience=4):
        given |= {picture.index: len(asked) for picture in batch}
    assert given == {0: 5, 1: 3, 2: 3, 3: 5, 4: 5, 5: 7, 6: 7, 7: 9, 8: 9, 9: 10}
    alternating = list(uniform_batches(waiting([wide, tall] * 8), 4, patience=8))
    assert [len(batch) for batch in alternating] == [4] * 4


def test_rows_that_fill_a_batch_up_are_black_and_as_large_as_the_input():
    rule = view_rule(PaddedDetector("box").input_spec)
    pictures = [prepare(i, np.full((64, 32, 3), 9, np.uint8), rule) for i in range(2)]
    images, sizes = pad_batch(pictures, 3)
    assert images.shape == (3, 96, 32, 3)
    assert sizes.tolist() == [[64, 32], [64, 32], [96, 32]]
    assert (images[:2, :64] == 9).all()
    assert not images[:, 64:].any()
    assert not images[2].any()


def test_rules_of_nms_are_yolacts():
    assert with_nms(CONFIG, None) is CONFIG
    assert with_nms(CONFIG, "greedy").model.detection.nms == "greedy"
    with pytest.raises(ConfigError, match=r"nms = 'fast' cannot be chosen: config\.model\.kind = 'rcnn' knows one rule only"):
        with_nms(Config(model=RcnnConfig()), "fast")


# ---- Whole evaluations ----


@pytest.fixture
def white_box_detector(use_detector):
    return use_detector(WhiteBoxDetector())


@pytest.fixture(scope="module")
def white_box_files(tmp_path_factory):
    root = tmp_path_factory.mktemp("white_boxes") / "data"
    white_boxes.write_dataset(root, 7)
    return root


def open_white_boxes(root):
    return open_dataset(override(CONFIG, {"data.root": str(root)}), "val")


def test_evaluation_of_right_detections(white_box_detector, white_box_files, tmp_path, capsys):
    """Correct masks of 8 images of several sizes reach an AP of 1.

    Batches of 4 are split over two devices. The additional half boxes have lower scores.
    """
    dataset = open_white_boxes(white_box_files)
    metrics = evaluate(CONFIG, VARIABLES, dataset, batch_size=3, output=tmp_path / "results")
    assert metrics["box/AP"] == metrics["mask/AP"] == pytest.approx(1.0)
    assert metrics["mask/AP/dim"] == metrics["box/AP50/bright"] == pytest.approx(1.0)
    assert capsys.readouterr().out == ""
    saved = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert saved["mask/AP"] == metrics["mask/AP"]
    assert saved["mask/APl"] is None
    boxes = json.loads((tmp_path / "results" / "bbox_detections.json").read_text())
    masks = json.loads((tmp_path / "results" / "mask_detections.json").read_text())
    assert len(boxes) == len(masks) == 14
    assert {row["image_id"] for row in boxes} == {100 + i for i in range(7)}
    assert {row["category_id"] for row in masks} == set(CATEGORY_IDS)
    by_image = {annotation["image_id"]: annotation for annotation in dataset.coco_ground_truth()["annotations"]}
    for box, mask in zip(boxes[::2], masks[::2], strict=True):
        assert box["bbox"] == by_image[box["image_id"]]["bbox"]
        # Interpolation may remove the four corners.
        assert 0 <= by_image[mask["image_id"]]["area"] - int(coco_mask.area(mask["segmentation"])) <= 4


@pytest.mark.parametrize(("mask_frame", "pixel_offset"), [("image", 0), ("box", 0), ("box", 1), ("integer_box", 1), (None, 0)])
def test_evaluation_in_inputs_of_two_shapes(use_detector, white_box_files, tmp_path, mask_frame, pixel_offset):
    """The same 8 pictures keep their proportions, with one program per input shape.

    The results are in the order of the images.
    """
    detector = use_detector(PaddedDetector(mask_frame, pixel_offset))
    (tmp_path / "mask_detections.json").write_text("another detector's")
    dataset = open_white_boxes(white_box_files)
    metrics = evaluate(CONFIG, VARIABLES, dataset, batch_size=2, output=tmp_path)
    assert detector.traces == 2
    # A box that ends in its last pixel loses a part of it if the picture is larger than the input.
    assert metrics["box/AP75" if pixel_offset else "box/AP"] == pytest.approx(1.0)
    boxes = json.loads((tmp_path / "bbox_detections.json").read_text())
    assert [row["image_id"] for row in boxes] == [100 + i // 2 for i in range(14)]
    assert (tmp_path / "mask_detections.json").exists() == (mask_frame is not None)
    if mask_frame is None:
        assert not any(key.startswith("mask") for key in metrics)
        return
    assert metrics["mask/AP50"] == pytest.approx(1.0)
    by_image = {annotation["image_id"]: annotation for annotation in dataset.coco_ground_truth()["annotations"]}
    masks = decode_masks(json.loads((tmp_path / "mask_detections.json").read_text()))
    for image_id, (whole, half) in masks.items():
        x, y, width, height = (int(side) for side in by_image[image_id]["bbox"])
        expected = np.zeros_like(whole)
        expected[y : y + height, x : x + width] = True
        # Each side may gain or lose a pixel, and interpolation may remove the corners.
        assert (whole != expected).sum() <= 2 * (width + height) + 4, image_id
        expected[:, x + width // 2 :] = False
        assert (half != expected).sum() <= 2 * (width // 2 + height) + 4, image_id


def decode_masks(rows):
    """Decodes the two masks of each image."""
    return {
        first["image_id"]: decode_rle([first["segmentation"], second["segmentation"]])
        for first, second in zip(rows[::2], rows[1::2], strict=True)
    }


def test_a_detector_without_masks_has_none_even_where_no_image_can_be_read(use_detector, tmp_path):
    use_detector(PaddedDetector(None))
    white_boxes.write_dataset(tmp_path / "data", 2)
    for path in (tmp_path / "data" / "val2017").iterdir():
        path.write_bytes(b"no picture")
    metrics = evaluate(CONFIG, VARIABLES, open_white_boxes(tmp_path / "data"), batch_size=2)
    assert metrics["box/AP"] == 0
    assert not any(key.startswith("mask") for key in metrics)


def test_evaluating_again_compiles_nothing(white_box_detector, white_box_files):
    dataset = open_white_boxes(white_box_files)
    for score in (1.0, 0.5):
        evaluate(CONFIG, {"params": {"score": np.float32(score)}}, dataset, batch_size=4)
    assert white_box_detector.traces == 1


def test_without_a_dataset_the_validation_images_of_the_config_are_taken(white_box_detector, white_box_files, tmp_path):
    config = override(CONFIG, {"data.root": str(white_box_files)})
    metrics = jaxseg.evaluate(config, VARIABLES, output=str(tmp_path))
    assert metrics["mask/AP"] == pytest.approx(1.0)
    assert len(json.loads((tmp_path / "bbox_detections.json").read_text())) == 14


def test_limit_threshold_top_k_and_mesh(white_box_detector, white_box_files, tmp_path):
    dataset = open_white_boxes(white_box_files)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    found = []
    for options in ({"limit": 3}, {"score_threshold": 0.5}, {"top_k": 1, "mesh": mesh}, {"limit": 50}):
        evaluate(CONFIG, VARIABLES, dataset, batch_size=2, output=tmp_path, **options)
        found.append(len(json.loads((tmp_path / "bbox_detections.json").read_text())))
    assert found == [6, 7, 7, 14]


def test_a_broken_image_counts_as_one_without_detections(white_box_detector, tmp_path, caplog):
    white_boxes.write_dataset(tmp_path / "data", 4)
    dataset = open_white_boxes(tmp_path / "data")
    (tmp_path / "data" / "val2017" / "002.png").write_bytes(b"no picture")
    with caplog.at_level(logging.INFO, logger="jaxseg"):
        metrics = evaluate(CONFIG, VARIABLES, dataset, batch_size=2)
    assert "002.png" in caplog.text
    assert metrics["box/AP/dim"] == pytest.approx(1.0)
    assert 0.4 < metrics["box/AP/bright"] < 0.6
    assert metrics["mask/AR100"] == pytest.approx(0.75)


def test_another_number_of_classes_is_refused(white_box_detector, white_box_files):
    config = override(CONFIG, {"model.num_classes": 3})
    with pytest.raises(ConfigError, match=r"num_classes = 3, but the dataset has 2"):
        evaluate(config, VARIABLES, open_white_boxes(white_box_files), batch_size=2)


def test_two_processes_reach_what_one_reaches(white_box_detector, white_box_files, tmp_path):
    alone = evaluate(CONFIG, VARIABLES, open_white_boxes(white_box_files), batch_size=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), environment.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, white_boxes.__file__, str(white_box_files), str(tmp_path / f"{i}.json")],
            env=environment | {"JAX_PROCESS_ID": str(i)},
        )
        for i in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for i in range(2):
        metrics = json.loads((tmp_path / f"{i}.json").read_text())
        np.testing.assert_equal(metrics, alone)
    assert alone["mask/AP"] == pytest.approx(1.0)
    assert open_white_boxes(white_box_files).class_names == CLASS_NAMES
