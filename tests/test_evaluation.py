"""Masks and boxes back at image size, COCO's results and metrics, and the evaluation of a dataset."""

import json
import logging
import math
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

from jaxseg.config import Config, ConfigError, RcnnConfig, override
from jaxseg.data.coco import open_dataset
from jaxseg.evaluation import detect, evaluate
from jaxseg.evaluation.coco_metrics import CocoResults, class_table, coco_metrics, coco_results, merge_results, threshold_table
from jaxseg.evaluation.detect import (
    Prepared,
    Selected,
    Selection,
    Sizes,
    one_ahead,
    one_shape_batches,
    pad_batch,
    prepare,
    select,
    to_picture,
    with_nms,
)
from jaxseg.evaluation.masks import boxes_at_image_size, decode_rle, encode_rle, integer_boxes, masks_at_image_size, polygons
from jaxseg.structures import Detections, InputSpec

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RUNS = ("yolact_resnet50", "yolact_base", "yolact_darknet53", "yolact_im400", "yolact_resnet50_pascal", "yolact_plus_resnet50")


# ---- Masks and boxes at image size ----


def bilinear(soft_masks, image_size):
    """The definition, dense and in float64: half-pixel centres, the edge repeated."""

    def weights(size, new_size):
        centers = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
        return np.maximum(1 - np.abs(centers[:, None] - np.arange(size)), 0)

    rows, columns = weights(soft_masks.shape[1], image_size[0]), weights(soft_masks.shape[2], image_size[1])
    return np.einsum("Hh,dhw,Ww->dHW", rows, soft_masks.astype(np.float64), columns)


def cropped_masks(rng, boxes, size):
    masks = rng.random((len(boxes), *size), dtype=np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[:y1], mask[y2:], mask[:, :x1], mask[:, x2:] = 0, 0, 0, 0
    return masks


@pytest.mark.parametrize("image_size", [(33, 50), (480, 640), (20, 21), (9, 7), (150, 20), (1, 1)])
def test_masks_are_the_thresholded_bilinear_resize(image_size):
    boxes = [(0, 0, 21, 20), (0, 0, 1, 1), (20, 19, 21, 20), (5, 6, 9, 18), (7, 7, 7, 7), (0, 9, 21, 10)]
    soft = cropped_masks(np.random.default_rng(0), boxes, (20, 21))
    expected = bilinear(soft, image_size)
    decided = np.abs(expected - 0.5) > 1e-6
    masks = masks_at_image_size(soft, image_size)
    assert masks.dtype == bool
    assert masks.shape == (6, *image_size)
    assert decided.mean() > 0.99
    np.testing.assert_array_equal(masks[decided], (expected > 0.5)[decided])
    assert not masks[4].any()


def test_no_masks_at_image_size():
    assert masks_at_image_size(np.zeros((0, 4, 4), np.float32), (6, 7)).shape == (0, 6, 7)


def golden_soft_masks(run):
    """The original's input to its post-processing: prototypes and coefficients, cropped by the padded box."""
    detections, prototypes = np.load(run / "detect.npz"), np.load(run / "proto.npz")["proto"]
    boxes = detections["fast_box"]
    masks = 1 / (1 + np.exp(-np.einsum("hwk,dk->dhw", prototypes, detections["fast_mask"])))
    size = np.array(prototypes.shape[1::-1], np.float32)
    low, high = np.sort(boxes.reshape(-1, 2, 2) * size, axis=1).swapaxes(0, 1)
    low, high = np.maximum(low - 1, 0), np.minimum(high + 1, size)
    columns, rows = np.arange(size[0]), np.arange(size[1])
    inside_x = (columns >= low[:, :1]) & (columns < high[:, :1])
    inside_y = (rows >= low[:, 1:]) & (rows < high[:, 1:])
    return boxes, masks.astype(np.float32) * inside_y[:, :, None] * inside_x[:, None, :]


@pytest.mark.parametrize("run", RUNS)
def test_post_processing_is_the_originals(golden, run):
    folder = golden / "yolact" / f"{run}_s0"
    post = np.load(folder / "post.npz")
    boxes, soft = golden_soft_masks(folder)
    width, height = (int(side) for side in post["wh"])
    count, *shape = post["masks_shape"]
    expected = np.unpackbits(post["masks_packed"], axis=1)[:, : height * width].reshape(count, *shape).astype(bool)
    different = masks_at_image_size(soft, (height, width)) != expected
    # Prototypes times coefficients round differently: a pixel in ten million.
    assert different.mean() < 1e-6
    np.testing.assert_array_equal(integer_boxes(boxes, (1, 1), (height, width)), post["boxes"])


def test_integer_boxes_clamp_one_side_only():
    boxes = np.array([[-30.0, 10.0, -10.0, 20.0], [90.0, 95.0, 130.0, 50.0], [10.9, 10.9, 20.9, 20.9]])
    found = integer_boxes(boxes, (100, 100), (100, 200))
    np.testing.assert_array_equal(found, [[0, 10, -20, 20], [180, 50, 200, 95], [21, 10, 41, 20]])


def test_boxes_are_clipped_to_the_picture():
    boxes = np.array([[-30.0, 10.0, -10.0, 20.0], [90.0, 95.0, 130.0, 50.0], [10.5, 10.5, 20.5, 20.5]])
    found = boxes_at_image_size(boxes, (100, 100), (100, 200))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 10, 0, 20], [180, 50, 200, 95], [21, 10.5, 41, 20.5]], rtol=1e-6)
    assert boxes_at_image_size(np.zeros((0, 4)), (100, 100), (100, 200)).shape == (0, 4)


def test_boxes_that_end_in_their_last_pixel_become_continuous_at_picture_scale():
    """maskrcnn-benchmark scales the corners as they are, and takes x2 - x1 + 1 for the width of the result."""
    # The last one is thinner than a pixel: less than nothing without the offset.
    boxes = np.array([[10.0, 20.0, 19.0, 59.0], [0.0, 0.0, 99.0, 99.0], [10.0, 20.0, 9.75, 20.0]])
    found = boxes_at_image_size(boxes, (100, 100), (50, 200), pixel_offset=1.0)
    np.testing.assert_allclose(found, [[20, 10, 39, 30.5], [0, 0, 199, 50], [20, 10, 20.5, 11]], rtol=1e-6)


def test_a_picture_at_its_own_size_keeps_every_bit_of_its_boxes():
    boxes = np.random.default_rng(0).uniform(0, 400, (1000, 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_array_equal(boxes_at_image_size(boxes, (801, 809), (801, 809)), np.clip(boxes, 0, [809, 801] * 2))


SOFT = np.random.default_rng(1).random((2, 28, 28), dtype=np.float32)


def in_picture(frame, boxes, sizes, pixel_offset=0.0, soft=SOFT):
    spec = InputSpec((sizes.input,), (28, 28), None, 2, mask_frame=frame, pixel_offset=pixel_offset)
    found = Selected(np.array(boxes, np.float32), np.ones(2, np.float32), np.zeros(2, np.int32), soft)
    return to_picture(found, sizes, spec)


def test_what_is_found_is_scaled_by_the_pictures_part_of_the_input():
    """The picture fills 60 x 80 of 96 x 128 cells, and each axis has a scale of its own."""
    boxes = [[8, 6, 40, 30], [0, 0, 80, 60]]
    sizes = Sizes(picture=(30, 160), fitted=(60, 80), input=(96, 128))
    for frame in ("image", "box", "integer_box"):
        found, masks = in_picture(frame, boxes, sizes)
        np.testing.assert_array_equal(found, [[16, 3, 80, 15], [0, 0, 160, 30]])
        assert masks.shape == (2, 30, 160)
    assert in_picture("box", boxes, sizes, soft=None)[1] is None


def test_a_mask_over_the_input_is_cut_to_the_picture():
    """Rows and columns of cells that lie beyond the picture's part of the input are not seen, those within in full."""
    soft = np.zeros((2, 48, 64), np.float32)
    soft[0, :30, :40] = 1
    soft[1, 30:], soft[1, :, 40:] = 1, 1
    _, masks = in_picture("image", np.zeros((2, 4)), Sizes((120, 160), (60, 80), (96, 128)), soft=soft)
    # Bilinear: the last half cell mixes with what is beyond.
    assert masks[0, :117, :157].all()
    assert not masks[1, :117, :157].any()


def test_a_mask_over_a_box_that_reaches_outside_is_cut_and_not_squeezed():
    sizes = Sizes((100, 100), (100, 100), (128, 128))
    boxes, masks = in_picture("box", [[-28, 0, 28, 56], [72, 50, 128, 106]], sizes)
    _, moved = in_picture("box", [[0, 0, 56, 56], [0, 0, 56, 56]], sizes)
    np.testing.assert_array_equal(boxes, [[0, 0, 28, 56], [72, 50, 100, 100]])
    np.testing.assert_array_equal(masks[0, :56, :28], moved[0, :56, 28:56])
    np.testing.assert_array_equal(masks[1, 50:, 72:], moved[1, :50, :28])


def test_masks_of_boxes_that_end_in_their_last_pixel():
    """Stretched by maskrcnn-benchmark's rule they are its own; sampled they cover the last pixel, too."""
    full = np.ones((2, 28, 28), np.float32)
    sizes = Sizes((100, 100), (100, 100), (128, 128))
    boxes = [[10, 20, 37, 47], [50, 50, 50, 50]]
    _, masks = in_picture("box", boxes, sizes, pixel_offset=1.0, soft=full)
    assert [int(mask.sum()) for mask in masks] == [28 * 28, 1]
    _, stretched = in_picture("integer_box", boxes, sizes, pixel_offset=1.0, soft=SOFT)
    np.testing.assert_array_equal(stretched, in_picture("integer_box", boxes, sizes, soft=SOFT)[1])


# ---- Run lengths and polygons ----


def shapes_to_encode():
    y, x = np.mgrid[:30, :40]
    ring = ((x - 20) ** 2 + (y - 15) ** 2 < 144) & ((x - 20) ** 2 + (y - 15) ** 2 > 36)
    return np.stack([np.zeros((30, 40), bool), np.ones((30, 40), bool), ring, np.random.default_rng(0).random((30, 40)) > 0.5])


def test_run_lengths_are_cocos_and_come_back():
    masks = shapes_to_encode()
    rles = encode_rle(masks)
    expected = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert [rle["counts"] for rle in rles] == [rle["counts"].decode() for rle in expected]
    assert json.loads(json.dumps(rles)) == rles
    np.testing.assert_array_equal(decode_rle(rles), masks)
    assert encode_rle(masks[:0]) == []


def area(polygon):
    x, y = np.array(polygon).reshape(-1, 2).T
    return abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2


def test_polygons_follow_the_edges_of_pixels():
    mask = np.zeros((6, 9), bool)
    mask[1, 2] = True
    mask[3:6, 4:9] = True
    single, block = sorted(polygons(mask), key=area)
    assert sorted(zip(single[::2], single[1::2], strict=True)) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert sorted(zip(block[::2], block[1::2], strict=True)) == [(4, 3), (4, 6), (9, 3), (9, 6)]
    assert polygons(np.zeros((6, 9), bool)) == []


def test_polygons_fill_holes_and_keep_everything_else():
    ring = shapes_to_encode()[2]
    y, x = np.mgrid[:30, :40]
    disc = (x - 20) ** 2 + (y - 15) ** 2 < 144
    (outline,) = polygons(ring)
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([outline], 30, 40))).astype(bool)
    np.testing.assert_array_equal(drawn, disc)


# ---- Metrics ----


def test_metrics_are_cocoevals(golden, capsys):
    data = json.loads((golden / "yolact" / "functions" / "eval.json").read_text())
    results = CocoResults(data["bbox_detections"], data["mask_detections"], [image["id"] for image in data["gt_coco"]["images"]])
    before = json.dumps(data)
    metrics = coco_metrics(data["gt_coco"], results, [10, 20, 35, 77], ["c0", "c1", "c2", "c3"])
    for kind in ("box", "mask"):
        expected = [value if value > -1 else math.nan for value in data["cocoeval_stats"][kind]]
        np.testing.assert_allclose([metrics[f"{kind}/{name}"] for name in SUMMARY], expected, rtol=1e-9)
        # On this set the original's own mAP agrees once crowds keep their class.
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
    """Class, x, y, size, score of each."""
    boxes = [(x, y, x + size, y + size) for _, x, y, size, _ in squares]
    rles = [square(1, 5, x, y, size)["segmentation"] for _, x, y, size, _ in squares]
    return coco_results(image_id, np.array(boxes), np.array([k for k, *_ in squares]), np.array([s for *_, s in squares]), rles, (5, 9, 11))


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
    # The dog's detection overlaps by 30 / 40: right at .50 to .75.
    truth = ground_truth(square(1, 5, 4, 4, 20), square(2, 9, 10, 10, 40))
    dog = coco_results(2, np.array([[10, 10, 40, 50]]), np.array([1]), np.array([0.8]), None, (5, 9, 11))
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
    """Polygons, both forms of run lengths and crowds: detecting the ordinary objects is all there is to do."""
    dataset = open_dataset(override(Config(), {"data.root": str(coco_mini)}), "val")
    truth = dataset.coco_ground_truth()
    parts = []
    for index, image_id in enumerate(dataset.image_ids):
        objects = dataset.objects(index)
        rows = np.flatnonzero(~objects.crowd)
        corners = np.concatenate([objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]], axis=1)[rows]
        rles = [{"size": objects.rles[row]["size"], "counts": objects.rles[row]["counts"].decode()} for row in rows]
        parts.append(coco_results(image_id, corners, objects.classes[rows], np.ones(len(rows)), rles, dataset.category_ids))
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
    results = coco_results(7, boxes, np.array([1, 0]), np.array([0.5, 0.4], np.float32), rles, (5, 9))
    assert results.boxes == [{"image_id": 7, "category_id": 9, "score": 0.5, "bbox": [1.0, 2.0, 10.0, 20.0]}]
    assert results.masks == [{"image_id": 7, "category_id": 9, "score": 0.5, "segmentation": rles[0]}]
    assert results.image_ids == [7]
    json.dumps(results)


# ---- Evaluation of a dataset ----


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


def waiting(shapes):
    return [Prepared(i, np.zeros((*shape, 3), np.float32), Sizes(shape, shape, shape)) for i, shape in enumerate(shapes)]


def test_batches_have_pictures_of_one_shape():
    wide, tall = (4, 6), (6, 4)
    pictures = waiting([wide, tall, wide, wide, tall, wide, wide])
    batches = [[picture.index for picture in batch] for batch in one_shape_batches(pictures, 3)]
    assert batches == [[0, 2, 3], [1, 4], [5, 6]]
    assert list(one_shape_batches([], 3)) == []


def test_a_batch_that_has_waited_long_enough_goes_without_being_full():
    wide, tall = (4, 6), (6, 4)
    asked = []

    def pictures():
        for picture in waiting([tall] + [wide] * 9):
            asked.append(picture.index)
            yield picture

    given = {}
    for batch in one_shape_batches(pictures(), 2, patience=4):
        given |= {picture.index: len(asked) for picture in batch}
    assert given == {0: 5, 1: 3, 2: 3, 3: 5, 4: 5, 5: 7, 6: 7, 7: 9, 8: 9, 9: 10}
    alternating = list(one_shape_batches(waiting([wide, tall] * 8), 4, patience=8))
    assert [len(batch) for batch in alternating] == [4] * 4


def test_rows_that_fill_a_batch_up_are_black_and_as_large_as_the_input():
    spec = PaddedDetector("box").input_spec
    pictures = [prepare(i, np.full((64, 32, 3), 9, np.uint8), spec) for i in range(2)]
    images, sizes = pad_batch(pictures, 3)
    assert images.shape == (3, 96, 32, 3)
    assert sizes.tolist() == [[64, 32], [64, 32], [96, 32]]
    assert (images[:2, :64] == 9).all()
    assert not images[:, 64:].any()
    assert not images[2].any()


def test_rules_of_nms_are_yolacts():
    assert with_nms(CONFIG, None) is CONFIG
    assert with_nms(CONFIG, "greedy").model.detection.nms == "greedy"
    with pytest.raises(ConfigError, match=r"nms = 'fast' is a choice that YOLACT has; config\.model\.kind = 'rcnn' knows one rule only"):
        with_nms(Config(model=RcnnConfig()), "fast")


@pytest.fixture
def use_detector(monkeypatch):
    """Puts a detector in the place of every configuration's."""

    def use(detector):
        monkeypatch.setattr(detect, "build_model", lambda config: detector)
        return detector

    detect._detect_program.cache_clear()
    yield use
    detect._detect_program.cache_clear()


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
    """8 images of several sizes in batches of 4 over two devices: right masks score 1, the extra half boxes come after."""
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
        # Interpolation may take the four corners.
        assert 0 <= by_image[mask["image_id"]]["area"] - int(coco_mask.area(mask["segmentation"])) <= 4


@pytest.mark.parametrize(("mask_frame", "pixel_offset"), [("image", 0), ("box", 0), ("box", 1), ("integer_box", 1), (None, 0)])
def test_evaluation_in_inputs_of_two_shapes(use_detector, white_box_files, tmp_path, mask_frame, pixel_offset):
    """The same 8 pictures, in their proportions: one program a shape, and results in the order of the images."""
    detector = use_detector(PaddedDetector(mask_frame, pixel_offset))
    (tmp_path / "mask_detections.json").write_text("another detector's")
    dataset = open_white_boxes(white_box_files)
    metrics = evaluate(CONFIG, VARIABLES, dataset, batch_size=2, output=tmp_path)
    assert detector.traces == 2
    # A box that ends in its last pixel loses some of it where the picture is larger than the input.
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
        # A side may gain or lose a pixel, and interpolation take the corners.
        assert (whole != expected).sum() <= 2 * (width + height) + 4, image_id
        expected[:, x + width // 2 :] = False
        assert (half != expected).sum() <= 2 * (width // 2 + height) + 4, image_id


def decode_masks(rows):
    """The two masks of each image."""
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
