"""Exact greedy NMS, compared with a loop over boxes and with the originals.

The originals are the compiled routines of maskrcnn-benchmark and mmcv, and torchvision's rule.
"""

from functools import partial

import jax
import numpy as np
import pytest
from goldens import load_arrays

from jaxseg.ops.boxes import clip_boxes
from jaxseg.ops.nms import Kept, by_class, class_nms, exact, exact_nms, labelled_nms

# Boxes suppress each other above the threshold (torchvision, detectron2, CUDA), or also at the
# threshold (mmcv on CPUs); boxes may end in their last pixel (maskrcnn-benchmark).
RULES = {
    "strict": {},
    "mmcv_cpu": {"suppress_equal": True},
    "mmcv_off1": {"suppress_equal": True, "pixel_offset": 1.0},
    "mrb_cpu": {"suppress_equal": True, "pixel_offset": 1.0},
}

# There is one program for each rule and number of boxes.
RULE = ("iou_threshold", "pixel_offset", "suppress_equal")
run_exact = jax.jit(exact_nms, static_argnames=RULE)
run_class = jax.jit(class_nms, static_argnames=(*RULE, "score_threshold", "max_detections"))
run_labelled = jax.jit(labelled_nms, static_argnames=(*RULE, "score_threshold", "max_detections"))


def greedy(
    boxes: np.ndarray, order: np.ndarray, iou_threshold: float, pixel_offset: float = 0.0, suppress_equal: bool = False
) -> list[int]:
    """Applies the definition box after box; `order` has the rows in descending order of scores."""
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0] + np.float32(pixel_offset)) * (boxes[:, 3] - boxes[:, 1] + np.float32(pixel_offset))
    for row in order:
        others = np.array(kept, int)
        low, high = np.maximum(boxes[others, :2], boxes[row, :2]), np.minimum(boxes[others, 2:], boxes[row, 2:])
        shared = np.maximum(high - low + np.float32(pixel_offset), 0).prod(1)
        union = area[others] + area[row] - shared
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        if not (overlap >= iou_threshold if suppress_equal else overlap > iou_threshold).any():
            kept.append(int(row))
    return kept


def greedy_by_class(boxes: np.ndarray, scores: np.ndarray, *, score_threshold: float, count: int, **rule) -> list[tuple[int, int]]:
    """Returns the rows and classes of the best `count` boxes that `greedy` keeps in the classes."""
    found = []
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        order = order[scores[order, label] > score_threshold]
        found += [(-scores[row, label], row, label) for row in greedy(boxes[:, label] if boxes.ndim == 3 else boxes, order, **rule)]
    return [(row, label) for _, row, label in sorted(found)[:count]]


def pixel_boxes(rng: np.random.Generator, *shape: int, picture: int = 60, side: int = 12) -> np.ndarray:
    """Makes boxes at whole pixels, with equal IoUs, IoUs at thresholds, and boxes without area."""
    low = rng.integers(picture, size=(*shape, 2))
    return np.concatenate([low, low + rng.integers(side, size=(*shape, 2))], -1).astype(np.float32)


def rows(kept: Kept) -> list[tuple[int, int]]:
    valid = np.asarray(kept.valid)
    assert not valid[valid.sum() :].any()
    return list(zip(np.asarray(kept.indices)[valid].tolist(), np.asarray(kept.classes)[valid].tolist(), strict=True))


LOOP_RULES = (
    {"iou_threshold": 0.5},
    {"iou_threshold": 0.5, "suppress_equal": True},
    {"iou_threshold": 0.3, "pixel_offset": 1.0, "suppress_equal": True},
)


@pytest.mark.parametrize(
    ("count", "rule"),
    [
        pytest.param(count, rule, marks=[] if i % 3 == j else pytest.mark.slow)
        for i, count in enumerate((1, 7, 512, 513, 1100))
        for j, rule in enumerate(LOOP_RULES)
    ],
)
def test_exact_nms_is_the_loop_over_boxes(count, rule):
    """There are one or several blocks, equal scores, and boxes that are equal, empty or invalid."""
    rng = np.random.default_rng(count)
    for picture in (10, 60, 300):
        boxes = pixel_boxes(rng, count, picture=picture)
        scores = (rng.integers(20, size=count) / 20).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        for valid in (rng.random(count) < 0.8, np.zeros(count, bool)):
            expected = np.isin(np.arange(count), greedy(boxes, order[valid[order]], **rule))
            np.testing.assert_array_equal(run_exact(boxes, scores, valid, **rule), expected)


def test_exact_nms_of_larger_blocks_and_of_a_batch(monkeypatch):
    """Beyond `MAX_BLOCKS` the blocks grow; the images of a batch do not affect each other."""
    monkeypatch.setattr(exact, "BLOCK_SIZE", 8)
    monkeypatch.setattr(exact, "MAX_BLOCKS", 4)
    rng = np.random.default_rng(0)
    boxes, scores = pixel_boxes(rng, 3, 130, picture=40), rng.random((3, 130), np.float32)
    keep = jax.jit(jax.vmap(lambda b, s: exact_nms(b, s, s > 0.2, iou_threshold=0.4)))(boxes, scores)
    for i in range(3):
        order = np.argsort(-scores[i], kind="stable")
        expected = greedy(boxes[i], order[scores[i][order] > 0.2], 0.4)
        assert np.flatnonzero(keep[i]).tolist() == sorted(expected)


def test_exact_nms_follows_a_chain_to_its_end():
    """Each box overlaps only its neighbours, so every second one is kept; no chain is longer."""
    left = np.arange(300, dtype=np.float32)[:, None] * 5
    boxes = np.concatenate([left, np.zeros_like(left), left + 10, np.full_like(left, 10)], 1)
    keep = run_exact(boxes, np.linspace(1, 0, 300, dtype=np.float32), np.ones(300, bool), iou_threshold=0.3)
    np.testing.assert_array_equal(keep, np.arange(300) % 2 == 0)


def test_exact_nms_of_nothing():
    assert run_exact(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, bool), iou_threshold=0.5).shape == (0,)


def test_exact_nms_of_a_batch_without_images():
    run = jax.jit(jax.vmap(lambda b, s: exact_nms(b, s, s > 0, iou_threshold=0.5)))
    assert run(np.zeros((0, 5, 4), np.float32), np.zeros((0, 5), np.float32)).shape == (0, 5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("percent", [pytest.param(30, marks=pytest.mark.slow), 50, pytest.param(70, marks=pytest.mark.slow)])
def test_exact_nms_keeps_what_the_originals_keep(golden, rule, percent):
    """All cases are padded to 1000 rows, of which only their own rows are valid."""
    g = load_arrays(golden / "two_stage" / "nms.npz")
    for case in ("rand60", "rand300", "rand1000", "ties", "identical", "degenerate", "exact_thr", "chain", "empty"):
        count = len(g[f"{case}_boxes"])
        boxes = np.pad(g[f"{case}_boxes"], ((0, 1000 - count), (0, 0)))
        scores = np.pad(g[f"{case}_scores"], (0, 1000 - count))
        keep = run_exact(boxes, scores, np.arange(1000) < count, iou_threshold=percent / 100, **RULES[rule])
        np.testing.assert_array_equal(np.flatnonzero(keep), np.sort(g[f"{case}_t{percent}_{rule}"]), err_msg=case)


# The number of boxes and of classes, and the side of the picture.
MANY, FEW_CLASSES, FEW = (50, 6, 20), (200, 3, 80), (3, 2, 5)
SHORT = [(5, True, MANY), (40, False, FEW_CLASSES), (2000, True, FEW), (2000, True, FEW_CLASSES)]


@pytest.mark.parametrize(
    ("count", "per_class", "sizes"),
    [
        pytest.param(*case, sizes, marks=[] if (*case, sizes) in SHORT else pytest.mark.slow)
        for case in ((5, True), (40, False), (2000, True))
        for sizes in (MANY, FEW_CLASSES, FEW)
    ],
)
def test_class_nms_is_the_loop_over_boxes_of_each_class(monkeypatch, count, per_class, sizes):
    """There are fewer or more detections than a block of candidates, and equal scores."""
    monkeypatch.setattr(by_class, "BLOCK_SIZE", 16)
    rule = {"score_threshold": 0.4, "iou_threshold": 0.4, "pixel_offset": 1.0, "suppress_equal": True}
    detect = jax.jit(partial(class_nms, max_detections=count, **rule))
    rng = np.random.default_rng(count)
    size, classes, picture = sizes
    boxes = pixel_boxes(rng, size, *([classes] if per_class else []), picture=picture)
    random_scores = (rng.integers(30, size=(size, classes)) / 30).astype(np.float32)
    for scores in (random_scores, random_scores / 3):
        kept = detect(boxes, scores)
        assert kept.scores.shape == (count,)
        assert rows(kept) == greedy_by_class(boxes, scores, count=count, **rule)
        np.testing.assert_array_equal(np.asarray(kept.scores)[: len(rows(kept))], [scores[at] for at in rows(kept)])


def test_class_nms_of_a_batch_is_that_of_its_images(monkeypatch):
    """Images need different numbers of blocks, and the one that ends first keeps its result."""
    monkeypatch.setattr(by_class, "BLOCK_SIZE", 16)
    rng = np.random.default_rng(0)
    boxes = np.stack([pixel_boxes(rng, 100, picture=2), pixel_boxes(rng, 100, picture=400), pixel_boxes(rng, 100)])
    scores = rng.random((3, 100, 2), np.float32) * np.array([1, 1, 0.1], np.float32)[:, None, None]
    rule = jax.jit(partial(class_nms, score_threshold=0.2, iou_threshold=0.3, max_detections=60))
    together = jax.jit(jax.vmap(rule))(boxes, scores)
    counts = []
    for i in range(3):
        alone = rule(boxes[i], scores[i])
        jax.tree.map(lambda batch, one, i=i: np.testing.assert_array_equal(batch[i], one), together, alone)
        counts.append(int(alone.valid.sum()))
    assert 0 < counts[0] < 60
    assert counts[1:] == [60, 0]


@pytest.mark.parametrize("case", ["b400", "b1500", "b_lvl"])
def test_boxes_of_different_levels_and_classes_do_not_suppress_each_other(golden, case):
    """The batched NMS of torchvision and mmcv gives the same rows in the same order."""
    g = load_arrays(golden / "two_stage" / "nms.npz")
    boxes, scores, groups = (g[f"{case}_{name}"] for name in ("boxes", "scores", "ids"))
    threshold = float(g[f"{case}_thr"])
    kept = run_labelled(boxes, scores, groups, score_threshold=-0.5, iou_threshold=threshold, max_detections=len(boxes))
    for library in ("tv", "mmcv"):
        expected = g[f"{case}_{library}"]
        assert rows(kept) == list(zip(expected.tolist(), groups[expected].tolist(), strict=True))


@pytest.mark.parametrize("library", ["mmdet", "d2", "mrb"])
def test_detections_of_a_second_stage_are_the_originals(golden, library):
    """Boxes are clipped, pass a threshold and are suppressed within classes; the best 100 are kept.

    maskrcnn-benchmark has them in another order, by class.
    """
    g = load_arrays(golden / "two_stage" / "nms.npz")
    offset = 1.0 if library == "mrb" else 0.0
    boxes = np.asarray(jax.jit(partial(clip_boxes, pixel_offset=offset))(g["det_boxes"], g["det_hw"]))
    scores = g["det_probs_bglast"][:, :-1]
    rule = {"iou_threshold": 0.5, "pixel_offset": offset, "suppress_equal": library == "mrb"}
    kept = jax.tree.map(np.asarray, run_class(boxes, scores, score_threshold=0.05, max_detections=100, **rule))
    assert kept.valid.all()
    found = boxes[kept.indices, kept.classes]
    if library == "mmdet":
        np.testing.assert_array_equal(np.concatenate([found, kept.scores[:, None]], 1), g["det_mmdet_dets"])
        np.testing.assert_array_equal(kept.classes, g["det_mmdet_labels"])
    elif library == "d2":
        np.testing.assert_array_equal(found, g["det_d2_boxes"])
        np.testing.assert_array_equal(kept.scores, g["det_d2_scores"])
        np.testing.assert_array_equal(kept.classes, g["det_d2_classes"])
        np.testing.assert_array_equal(kept.indices, g["det_d2_kept"])
    else:
        ours = np.column_stack([kept.classes + 1, kept.scores, found])
        theirs = np.column_stack([g["det_mrb_labels"], g["det_mrb_scores"], g["det_mrb_boxes"]])
        np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
