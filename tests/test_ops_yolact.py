"""Boxes, priors, matching and suppression, compared with dbolya/yolact and literal answers."""

import functools

import jax
import numpy as np
import pytest
from goldens import functions
from test_nms import run_class

from jaxseg.config import load_config
from jaxseg.models import DetectionConfig, build_model
from jaxseg.models.yolact.detections import suppress
from jaxseg.ops.box_coder import ssd_decode, ssd_encode
from jaxseg.ops.boxes import centers_to_corners, pairwise_coverage, pairwise_iou
from jaxseg.ops.masks import box_mask, resize_masks, unpack_bits
from jaxseg.ops.matching import Match, PriorMatcher
from jaxseg.ops.nms import cross_class_fast_nms, fast_nms
from jaxseg.ops.sampling import choose, hardest

CONFIGS = {"yolact_base_config": "yolact_r101", "yolact_im400_config": "yolact_im400_r101", "yolact_im700_config": "yolact_im700_r101"}
CONFIGS["yolact_resnet50_pascal_config"] = "yolact_r50_pascal"

MATCHER = PriorMatcher(positive_iou=0.5, negative_iou=0.4, crowd_overlap=0.7)

match, decode, encode = jax.jit(MATCHER), jax.jit(ssd_decode), jax.jit(ssd_encode)
overlaps = jax.jit(pairwise_iou, static_argnames=("offset", "empty"))
run_fast = jax.jit(fast_nms, static_argnames=("iou_threshold", "top_k", "max_detections"))
run_across = jax.jit(cross_class_fast_nms, static_argnames=("iou_threshold", "top_k"))


@functools.cache
def anchors_of(name: str) -> np.ndarray:
    return np.asarray(build_model(load_config(f"configs/{CONFIGS[name]}.py")).anchors())


@pytest.mark.parametrize("name", CONFIGS)
def test_priors_are_the_originals(name):
    golden, priors = functions("priors"), anchors_of(name)
    assert len(priors) == golden[f"{name}/counts"].sum()
    np.testing.assert_allclose(priors[::37], golden[f"{name}/sub37"], atol=1e-7)
    np.testing.assert_allclose(priors.sum(0, np.float64), golden[f"{name}/sum"], rtol=1e-6)


def test_overlaps_and_coding_equal_the_originals():
    g = functions("box_utils")
    np.testing.assert_allclose(overlaps(g["jac_a"], g["jac_b"]), g["jac"], atol=1e-6)
    np.testing.assert_allclose(jax.jit(pairwise_coverage)(g["jac_a"], g["jac_b"]), g["jac_crowd"], atol=1e-6)
    np.testing.assert_allclose(decode(g["loc50"], g["priors50"]), g["decode50"], atol=1e-6)
    np.testing.assert_allclose(encode(g["decode50"], g["priors50"]), g["loc50"], atol=2e-4)


def test_overlap_of_literal_boxes():
    a = np.array([[0, 0, 2, 2], [1, 1, 1, 1]], np.float32)
    b = np.array([[1, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(overlaps(a, b), [[1 / 3, 0, 0], [0, 0, 0]], atol=1e-7)
    np.testing.assert_allclose(np.asarray(overlaps(a, b, empty=9.0))[1, 2], 9.0)
    # With a pixel offset, these are 3 x 3 boxes with an intersection of 2 x 3.
    np.testing.assert_allclose(np.asarray(overlaps(a, b, offset=1.0))[0, 0], 6 / 12)


def test_crop_covers_the_originals_pixels():
    g = functions("box_utils")
    height, width = g["crop_in"].shape[:2]
    inside = jax.jit(box_mask, static_argnums=1)(g["crop_boxes"] * np.array([width, height] * 2, np.float32), (height, width))
    np.testing.assert_array_equal(np.where(np.moveaxis(np.asarray(inside), 0, -1), g["crop_in"], 0), g["crop_out"])


@pytest.mark.parametrize("name", ["yolact_base_config", "yolact_resnet50_pascal_config"])
@pytest.mark.parametrize("case", range(5))
def test_matches_are_the_originals(name, case):
    g = {key.rsplit("/", 1)[1]: value for key, value in functions("match").items() if key.startswith(f"{name}/case{case}/")}
    anchors = anchors_of(name)
    crowd = g.get("crowd", np.zeros((0, 4), np.float32))
    boxes = np.zeros((32, 4), np.float32)
    count, total = len(g["truths"]), len(g["truths"]) + len(crowd)
    boxes[:count], boxes[count:total] = g["truths"], crowd
    rows = np.arange(32)
    corners = jax.jit(centers_to_corners)(anchors)
    labels, indices = match(corners, boxes, rows < count, (rows >= count) & (rows < total))
    labels, indices = np.asarray(labels), np.asarray(indices)
    classes = np.where(labels == Match.POSITIVE, np.append(g["labels"], np.zeros(32, int))[indices] + 1, labels)
    np.testing.assert_array_equal(classes, g["conf_t"])
    np.testing.assert_array_equal(indices, g["idx_t"])
    positive = labels == Match.POSITIVE
    np.testing.assert_allclose(np.asarray(encode(boxes[indices], anchors))[positive], g["loc_t_pos"], atol=2e-5, rtol=1e-5)


def test_every_object_gets_a_prior_of_its_own():
    """If two objects have the same best prior, the one with the larger IoU gets it."""
    priors = np.array([[0, 0, 10, 10], [0, 0, 10, 30], [50, 50, 60, 60]], np.float32)
    boxes = np.array([[0, 0, 10, 11], [0, 0, 10, 10]], np.float32)
    labels, indices = match(priors, boxes, np.ones(2, bool), np.zeros(2, bool))
    assert labels.tolist() == [Match.POSITIVE, Match.POSITIVE, Match.NEGATIVE]
    assert indices.tolist()[:2] == [1, 0]


def test_more_objects_than_priors_and_none_at_all():
    priors = np.array([[0, 0, 10, 10]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 9, 9], [20, 20, 30, 30]], np.float32)
    for valid, label in ((np.ones(3, bool), Match.POSITIVE), (np.zeros(3, bool), Match.NEGATIVE)):
        labels, _ = match(priors, boxes, valid, np.zeros(3, bool))
        assert labels.tolist() == [label]


@functools.cache
def suppression(rule: str):
    """Returns the program of one rule."""
    nms = {"fast": "fast", "fastcc": "cross_class", "trad": "greedy"}[rule]
    model = load_config("configs/yolact_r50.py", {"model.detection.nms": nms}).model
    return jax.jit(lambda boxes, scores: suppress(boxes, scores, model))


@pytest.mark.parametrize("case", ["dense", "many", "dupes", "single", "empty"])
@pytest.mark.parametrize("rule", ["fast", "fastcc", "trad"])
def test_suppression_keeps_what_the_original_keeps(case, rule):
    """The smallest cases are padded to 60 priors, of which the others have no class."""
    g = {key.removeprefix(f"{case}/"): value for key, value in functions("detect_cases").items() if key.startswith(f"{case}/")}
    loc, priors, scores = (np.pad(x, ((0, max(60 - len(x), 0)), (0, 0))) for x in (g["loc"][0], g["priors"], g["conf"][0, :, 1:]))
    boxes = np.asarray(decode(loc, priors))
    kept = suppression(rule)(boxes, scores.T)
    count = max(int(g[f"{rule}/n"]), 0)  # -1 means that the original returns nothing
    valid = np.asarray(kept.valid)
    assert valid.sum() == count
    assert valid[:count].all()
    if count:
        ours = sorted(zip(np.asarray(kept.scores)[:count].tolist(), np.asarray(kept.classes)[:count].tolist(), strict=True))
        theirs = sorted(zip(g[f"{rule}/score"].tolist(), g[f"{rule}/class"].tolist(), strict=True))
        np.testing.assert_allclose([s for s, _ in ours], [s for s, _ in theirs], atol=1e-6)
        assert sorted(c for _, c in ours) == sorted(c for _, c in theirs)
        assert (np.diff(np.asarray(kept.scores)[:count]) <= 0).all()
        order = np.lexsort(np.round(g[f"{rule}/box"], 4).T)
        kept_boxes = boxes[kept.indices][:count]
        np.testing.assert_allclose(kept_boxes[np.lexsort(np.round(kept_boxes, 4).T)], g[f"{rule}/box"][order], atol=2e-4)


@pytest.mark.parametrize("case", range(6))
def test_class_nms_keeps_what_the_compiled_original_keeps(case):
    g = functions("nms_trad")
    rows = g[f"in{case}"]
    kept = run_class(
        rows[:, :4],
        rows[:, 4:5],
        score_threshold=0.0,
        iou_threshold=0.5,
        max_detections=120,
        pixel_offset=1.0,
        suppress_equal=True,
    )
    assert sorted(np.asarray(kept.indices)[np.asarray(kept.valid)].tolist()) == sorted(g[f"keep{case}"].tolist())


def test_fast_nms_lets_suppressed_boxes_suppress_and_greedy_does_not():
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    fast = run_fast(boxes, scores, np.ones(3, bool), iou_threshold=0.4, top_k=3, max_detections=3)
    greedy = run_class(boxes, scores.T, score_threshold=0.0, iou_threshold=0.4, max_detections=3)
    assert np.asarray(fast.indices)[np.asarray(fast.valid)].tolist() == [0]
    assert np.asarray(greedy.indices)[np.asarray(greedy.valid)].tolist() == [0, 2]


def test_classes_suppress_each_other_only_across_classes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    one = np.ones(2, bool)
    fast = run_fast(boxes, scores, one, iou_threshold=0.5, top_k=2, max_detections=4)
    across = run_across(boxes, scores, one, iou_threshold=0.5, top_k=2)
    np.testing.assert_allclose(fast.scores, [0.9, 0.8, 0, 0], atol=1e-7)
    assert fast.classes.tolist()[:2] == [0, 1]
    assert fast.valid.tolist() == [True, True, False, False]
    assert across.valid.tolist() == [True, False]


def test_suppression_takes_fewer_priors_than_rows():
    rule = DetectionConfig()
    boxes, scores = np.ones((2, 4), np.float32), np.ones((1, 2), np.float32)
    kept = run_fast(boxes, scores, np.ones(2, bool), iou_threshold=0.5, top_k=rule.top_k, max_detections=rule.max_detections)
    assert kept.scores.shape == (100,)
    assert int(kept.valid.sum()) == 1


def test_hardest_and_choose_on_literal_scores():
    run_hardest, run_choose = jax.jit(hardest), jax.jit(choose, static_argnums=2)
    scores = np.array([0.5, 0.9, 0.9, 0.1], np.float32)
    candidates = np.array([True, False, True, True])
    assert run_hardest(scores, candidates, np.int32(2)).tolist() == [True, False, True, False]
    assert run_hardest(scores, candidates, np.int32(9)).tolist() == candidates.tolist()
    indices, counts = run_choose(candidates, scores, 3)
    assert indices.tolist() == [2, 0, 3]
    assert np.all(counts)
    assert run_choose(np.zeros(4, bool), scores, 3)[1].tolist() == [False] * 3


def test_bits_survive_packing():
    masks = np.random.default_rng(0).random((3, 5, 13)) > 0.5
    np.testing.assert_array_equal(jax.jit(unpack_bits, static_argnums=1)(np.packbits(masks, -1), 13), masks)


@jax.jit
def resize_on_canvas(masks: jax.Array, size: jax.Array) -> jax.Array:
    return resize_masks(masks, size, (40, 24))


@pytest.mark.parametrize("size", [(5, 9), (37, 20), (8, 8)])
def test_masks_resize_to_any_size_on_one_canvas(size):
    """One program works for all sizes, and does a bilinear resize with half-pixel centres."""
    masks = np.random.default_rng(0).random((2, 8, 8), np.float32)
    resized = np.asarray(resize_on_canvas(masks, np.array(size, np.int32)))
    expected = jax.jit(lambda masks: jax.image.resize(masks, (2, *size), "linear", antialias=False))(masks)
    np.testing.assert_allclose(resized[:, : size[0], : size[1]], expected, atol=1e-6)
    assert not resized[:, size[0] :].any()
    assert not resized[:, :, size[1] :].any()
