"""The box coder, anchors, the matcher, the sampler and losses of two-stage detectors.

They are compared with the numbers of maskrcnn-benchmark, detectron2, mmdetection and torchvision,
with NumPy and with literal answers.
"""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from goldens import Golden, load_arrays

from jaxseg.models.anchored.config import SIZE_DIVISOR
from jaxseg.ops.anchors import cell_anchors, grid_anchors, in_padded_picture, inside_picture, pyramid_anchors
from jaxseg.ops.box_coder import MAX_LOG_SCALE, BoxCoder
from jaxseg.ops.boxes import clip_boxes, longer_than, pairwise_iou
from jaxseg.ops.losses import sigmoid_focal_loss, smooth_l1
from jaxseg.ops.matching import Match, Matcher, Matches
from jaxseg.ops.sampling import Sampler

STRIDES = (4, 8, 16, 32, 64)
SIZES = [(8 * stride,) for stride in STRIDES]
RATIOS = (0.5, 1.0, 2.0)
RULES = {"mrb": "legacy", "mmdet": "exact", "d2": "exact", "tv": "rounded"}

# Coders, matchers and samplers are static, so one program serves all calls of equal ones.
encode = jax.jit(BoxCoder.encode, static_argnums=0)
decode = jax.jit(BoxCoder.decode, static_argnums=0)
match = jax.jit(Matcher.__call__, static_argnums=0)
sample_masks = jax.jit(Sampler.masks, static_argnums=0)
sample_rows = jax.jit(Sampler.rows, static_argnums=0)
clip = jax.jit(clip_boxes, static_argnames="pixel_offset")
overlaps_of = jax.jit(pairwise_iou, static_argnames="offset")
distance = jax.jit(smooth_l1, static_argnums=2)


def two_stage(golden, name: str) -> Golden:
    return load_arrays(golden / "two_stage" / f"{name}.npz")


# ---- Boxes ----


@pytest.mark.parametrize("library", RULES)
@pytest.mark.parametrize(("name", "weights"), [("w1", (1.0, 1.0, 1.0, 1.0)), ("w10", (10.0, 10.0, 5.0, 5.0))])
def test_coding_equals_the_originals(golden, library, name, weights):
    """Some boxes are degenerate, tiny or far away, and some deltas are beyond the clamps."""
    g = two_stage(golden, "box_coder")
    coder = BoxCoder(weights, pixel_offset=1.0 if library == "mrb" else 0.0, clamp_both_sides=library == "mmdet")
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(encode(coder, g["gt"], g["anchors"]), g[f"{name}_{library}_enc"], rtol=1e-5, atol=1e-6)
    boxes = decode(coder, g["deltas"], g["anchors"])
    close(boxes, g[f"{name}_{library}_dec"])
    if library == "mmdet":
        close(clip(boxes, np.array([200, 300])), g[f"{name}_{library}_dec_clip200x300"])
    if library != "tv":
        of_classes = decode(coder, g["deltas_k3"].reshape(-1, 3, 4), g["anchors"][:, None])
        close(np.reshape(of_classes, (-1, 12)), g[f"{name}_{library}_dec_k3"])


@pytest.mark.parametrize("pixel_offset", [0.0, 1.0])
def test_decoding_undoes_encoding(pixel_offset):
    rng = np.random.default_rng(0)
    boxes, anchors = (np.concatenate([x, x + y], 1).astype(np.float32) for x, y in rng.random((2, 2, 40, 2)) * 90 + 5)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0), pixel_offset)
    decoded = decode(coder, encode(coder, boxes, anchors), anchors)
    np.testing.assert_allclose(decoded, boxes, atol=1e-4)


def test_boxes_of_literal_deltas():
    """A 10 x 20 box moves by half its size and doubles in width; a pixel offset adds one."""
    anchor = np.array([[0, 0, 10, 20]], np.float32)
    deltas = np.array([[0.5, 0.0, np.log(2.0), 0.0]], np.float32)
    np.testing.assert_allclose(decode(BoxCoder(), deltas, anchor), [[0, 0, 20, 20]], atol=1e-5)
    np.testing.assert_allclose(decode(BoxCoder(pixel_offset=1.0), deltas, anchor), [[0, 0, 21, 20]], atol=1e-5)


def test_scales_are_clamped_above_and_with_mmdetection_below():
    anchor = np.array([[0, 0, 16, 16]], np.float32)
    for delta, both, width in ((50.0, False, 1000.0), (-50.0, False, 0.0), (-50.0, True, 16 * np.exp(-MAX_LOG_SCALE))):
        box = np.asarray(decode(BoxCoder(clamp_both_sides=both), np.array([[0, 0, delta, 0]], np.float32), anchor))[0]
        np.testing.assert_allclose(box[2] - box[0], width, rtol=1e-5, atol=1e-6)


def test_encoding_is_finite_without_a_size():
    """A value that a mask removes afterwards must not be NaN, and nor must its gradient."""
    gradient = jax.jit(jax.grad(lambda b, a: BoxCoder().encode(b, a).sum()))
    boxes = np.array([[3, 3, 3, 3], [0, 0, 0, 0], [5, 5, 2, 9]], np.float32)
    for first, second in ((boxes, boxes + 1), (boxes, boxes), (np.zeros_like(boxes), np.array([[0, 0, 4, 4]] * 3, np.float32))):
        assert np.isfinite(encode(BoxCoder(), first, second)).all()
        assert np.isfinite(gradient(first, second)).all()


def test_boxes_are_clipped_to_pictures_whose_size_is_data():
    boxes = np.array([[-3, -2, 50, 60], [5, 6, 7, 8]], np.float32)
    np.testing.assert_array_equal(clip(boxes, np.array([40, 30])), [[0, 0, 30, 40], [5, 6, 7, 8]])
    np.testing.assert_array_equal(jax.jit(lambda boxes: clip_boxes(boxes, (40, 30), pixel_offset=1.0)[0])(boxes), [0, 0, 29, 39])


def test_sides_have_to_be_longer():
    boxes = np.array([[0, 0, 2, 3], [0, 0, 2, 2.5], [1, 1, 1, 1]], np.float32)
    longer = jax.jit(longer_than, static_argnums=1)
    assert longer(boxes, 2.0).tolist() == [False, False, False]
    assert longer(boxes, 1.5).tolist() == [True, True, False]
    assert np.all(longer(boxes, -1.0))


@pytest.mark.parametrize("library", ["mmdet", "d2", "mrb"])
def test_overlaps_equal_the_originals_bit_by_bit(golden, library):
    g = two_stage(golden, "assign")
    overlaps = overlaps_of(g["iou_a"], g["iou_b"], offset=1.0 if library == "mrb" else 0.0)
    np.testing.assert_array_equal(overlaps, g[f"{library}_iou"])


# ---- Anchors ----


@pytest.mark.parametrize("library", RULES)
def test_anchors_equal_the_originals_bit_by_bit(golden, library):
    """First cells and whole pyramids agree; torchvision derives its strides from the input size."""
    g = two_stage(golden, "anchors")
    rule, level_sizes = RULES[library], [tuple(size) for size in g["feat_hw"].tolist()]
    for i, stride in enumerate(STRIDES):
        np.testing.assert_array_equal(cell_anchors(SIZES[i], RATIOS, stride=stride, rule=rule), g[f"{library}_cell{i}"])
    canvas = (256, 416) if library == "tv" else None
    levels = pyramid_anchors(level_sizes, STRIDES, SIZES, RATIOS, rule=rule, canvas=canvas)
    assert all(level.dtype == np.float32 for level in levels)
    if library == "tv":
        expected = {"tv_all": np.concatenate(levels)}
    else:
        prefix = "d2_off0" if library == "d2" else library
        expected = {f"{prefix}_lvl{i}": level for i, level in enumerate(levels)}
    for key, anchors in expected.items():
        np.testing.assert_array_equal(g.kept(anchors, key), g[key])


def test_anchors_of_several_sizes_equal_the_originals(golden):
    """One level has all sizes in maskrcnn-benchmark's C4; mmdetection's RetinaNet has octaves.

    In torchvision's case, the cells are 59 pixels apart.
    """
    g = two_stage(golden, "anchors")
    np.testing.assert_array_equal(cell_anchors((32, 64, 128, 256, 512), RATIOS, stride=16, rule="legacy"), g["mrb_c4_cell"])
    octaves = [32 * 2 ** (i / 3) for i in range(3)]
    np.testing.assert_array_equal(cell_anchors(octaves, RATIOS, stride=8, rule="exact"), g["mmdet_retina_cell0"])
    (level,) = pyramid_anchors([(4, 7)], [64], [(512,)], (1.0,), rule="rounded", canvas=(224, 416))
    np.testing.assert_array_equal(level, g["tv_stride_quirk_224x416_feat4x7"])


def test_literal_anchors():
    assert cell_anchors((32,), RATIOS, stride=4, rule="legacy").tolist() == [[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]]
    assert cell_anchors((32,), RATIOS, stride=4, rule="rounded").tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert cell_anchors((4, 8), (1.0,), stride=4, rule="exact").tolist() == [[-2, -2, 2, 2], [-4, -4, 4, 4]]
    grid = grid_anchors(np.array([[-1, -1, 1, 1], [-2, -2, 2, 2]], np.float32), (10, 5), (2, 2))
    assert grid[:, :2].tolist() == [[-1, -1], [-2, -2], [4, -1], [3, -2], [-1, 9], [-2, 8], [4, 9], [3, 8]]
    with pytest.raises(ValueError, match="2 levels but strides for 1"):
        pyramid_anchors([(1, 1), (2, 2)], [4], [(8,)], (1.0,), rule="exact")


def test_anchors_a_picture_uses_equal_the_originals(golden):
    """These are maskrcnn-benchmark's visibility, and mmdetection's borders and valid flags."""
    g = two_stage(golden, "anchors")
    level_sizes = [tuple(size) for size in g["feat_hw"].tolist()]
    legacy, exact = (np.concatenate(pyramid_anchors(level_sizes, STRIDES, SIZES, RATIOS, rule=rule)) for rule in ("legacy", "exact"))
    inside = jax.jit(inside_picture, static_argnames="border")
    np.testing.assert_array_equal(inside(legacy, g["mrb_vis_image_hw"], border=0.0), g["mrb_visibility"])
    in_padded = jax.jit(partial(in_padded_picture, divisor=SIZE_DIVISOR))
    for size in ((224, 384), (220, 380), (193, 353)):
        valid = np.asarray(in_padded(exact, np.array(size)))
        np.testing.assert_array_equal(valid, g["mmdet_valid_pad224x384"])
    for border in (-1, 0, 16):
        expected = g[f"mmdet_inside_border{border}"]
        np.testing.assert_array_equal(np.asarray(inside(exact, np.array([220, 380]), border=float(border))) & valid, expected)


# ---- Matching ----


def naive_matches(
    anchors: np.ndarray,
    boxes: np.ndarray,
    valid: np.ndarray,
    positive_iou: float,
    negative_iou: float,
    forced: str,
    forced_min_iou: float,
    offset: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Applies the originals' rules in loops over a table of the IoUs of the valid rows of `boxes`."""
    overlaps = np.asarray(overlaps_of(boxes, anchors, offset=offset))[valid]
    best, indices = overlaps.max(0), overlaps.argmax(0)
    labels = np.where(best >= positive_iou, Match.POSITIVE, np.where(best >= negative_iou, Match.IGNORE, Match.NEGATIVE))
    for i, row in enumerate(overlaps):
        for anchor in np.flatnonzero(row == row.max()):
            if forced == "own_argmax":
                labels[anchor] = Match.POSITIVE
            elif forced == "best_anchor" and row.max() >= forced_min_iou:
                labels[anchor], indices[anchor] = Match.POSITIVE, i
    return labels, indices


@pytest.mark.parametrize("forced", ["none", "own_argmax", "best_anchor"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_matches_are_those_of_loops_over_a_table(forced, offset):
    """Small boxes at whole pixels have many equal IoUs, and padding lies between objects."""
    rng = np.random.default_rng(0)
    low = rng.integers(12, size=(5, 90, 2))
    boxes_and_anchors = np.concatenate([low, low + rng.integers(1, 8, size=low.shape)], -1).astype(np.float32)
    boxes, anchors = boxes_and_anchors[:, :10], boxes_and_anchors[:, 10:]
    valid = rng.random((5, 10)) < 0.6
    # One object overlaps no anchor, so its IoU is equal for all of them.
    boxes[0, 3], valid[0, 3] = [50, 50, 60, 60], True
    rule = {"positive_iou": 0.6, "negative_iou": 0.3, "forced": forced, "forced_min_iou": 0.2}
    matches = jax.jit(jax.vmap(Matcher(**rule, pixel_offset=offset)))(anchors, boxes, valid)
    for i in range(5):
        rows = np.flatnonzero(valid[i])
        labels, indices = naive_matches(anchors[i], boxes[i], rows, *rule.values(), offset)
        np.testing.assert_array_equal(np.asarray(matches.labels)[i], labels)
        np.testing.assert_array_equal(np.asarray(matches.indices)[i], rows[indices])
    assert {Match.POSITIVE, Match.NEGATIVE, Match.IGNORE} == set(np.asarray(matches.labels)[1:].ravel().tolist())


@pytest.mark.parametrize("forced", ["none", "own_argmax", "best_anchor"])
def test_without_objects_all_anchors_are_negative(forced):
    anchors = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    for boxes in (np.zeros((3, 4), np.float32), np.zeros((0, 4), np.float32)):
        valid = np.zeros(len(boxes), bool)
        labels, _ = match(Matcher(positive_iou=0.7, negative_iou=0.3, forced=forced), anchors, boxes, valid)
        assert labels.tolist() == [Match.NEGATIVE, Match.NEGATIVE]


@pytest.mark.parametrize("forced", ["own_argmax", "best_anchor"])
def test_objects_choose_among_the_anchors_that_take_part(forced):
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 14], [30, 30, 40, 40]], np.float32)
    boxes = np.array([[0, 0, 10, 10]], np.float32)
    matcher = Matcher(positive_iou=0.9, negative_iou=0.3, forced=forced, forced_min_iou=0.3)
    labels, _ = match(matcher, anchors, boxes, np.ones(1, bool))
    assert labels.tolist() == [Match.POSITIVE, Match.IGNORE, Match.NEGATIVE]
    labels, _ = match(matcher, anchors, boxes, np.ones(1, bool), np.array([False, True, True]))
    assert labels.tolist() == [Match.IGNORE, Match.POSITIVE, Match.NEGATIVE]


def test_two_rules_for_two_objects_that_want_one_anchor():
    """mmdetection assigns it to the later object, although its IoU with the other one is larger.

    The other originals only make the anchor positive.
    """
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 5], [90, 90, 99, 99]], np.float32)
    matches = {
        forced: match(Matcher(positive_iou=0.95, negative_iou=0.3, forced=forced, forced_min_iou=0.3), anchors, boxes, np.ones(3, bool))
        for forced in ("none", "own_argmax", "best_anchor")
    }
    assert {forced: (int(m.labels[0]), int(m.indices[0])) for forced, m in matches.items()} == {
        "none": (Match.IGNORE, 0),
        "own_argmax": (Match.POSITIVE, 0),
        "best_anchor": (Match.POSITIVE, 1),
    }


@pytest.mark.parametrize("case", ["many", "one", "dup", "conflict"])
@pytest.mark.parametrize("library", RULES)
def test_matches_equal_the_originals(golden, case, library):
    """Labels and objects of both stages agree exactly, ties included."""
    g = two_stage(golden, "assign")
    count = len(g[f"{case}_gt"])
    boxes, valid = np.pad(g[f"{case}_gt"], ((0, 7 - count), (0, 0))), np.arange(7) < count
    # mmdetection counts objects from 1; two originals use -1 for negative and -2 for ignored.
    codes = {
        "mmdet": lambda m: (np.where(m.labels == Match.POSITIVE, m.indices + 1, m.labels),),
        "d2": lambda m: (m.indices, m.labels),
    }
    code = codes.get(library, lambda m: (np.where(m.labels == Match.POSITIVE, m.indices, np.where(m.labels == Match.NEGATIVE, -1, -2)),))
    suffixes = ("_idx", "_lab") if library == "d2" else ("",)

    def check(stage: str, matches: Matches) -> None:
        for ours, suffix in zip(code(matches), suffixes, strict=True):
            np.testing.assert_array_equal(ours, g[f"{case}_{library}_{stage}{suffix}"])

    offset = 1.0 if library == "mrb" else 0.0

    def matched(anchors: np.ndarray, **rule) -> Matches:
        return jax.tree.map(np.asarray, match(Matcher(**rule, pixel_offset=offset), anchors, boxes, valid))

    forced = "best_anchor" if library == "mmdet" else "own_argmax"
    check("rpn", matched(g["anchors"], positive_iou=0.7, negative_iou=0.3, forced=forced, forced_min_iou=0.3))
    second = partial(matched, g[f"{case}_props"], positive_iou=0.5, negative_iou=0.5)
    check("rcnn", second(forced="none"))
    if library == "mmdet":
        check("rcnn_lowq", second(forced="best_anchor", forced_min_iou=0.5))


# ---- Sampling ----


@pytest.mark.parametrize("case", ["many", "one", "dup", "conflict"])
def test_samples_equal_the_originals(golden, case):
    """Their permutation was replaced by the identity, which equal priorities reproduce.

    The ground truth that mmdetection adds comes first.
    """
    g = two_stage(golden, "assign")
    labels = g[f"{case}_d2_rpn_lab"].astype(np.int32)
    positive, negative = sample_masks(Sampler(64, 0.5), labels, np.zeros(labels.shape, np.float32))
    np.testing.assert_array_equal(np.flatnonzero(positive), g[f"{case}_d2_sample64_pos"])
    np.testing.assert_array_equal(np.flatnonzero(negative), g[f"{case}_d2_sample64_neg"])
    labels = np.concatenate([np.ones(len(g[f"{case}_gt"])), np.sign(g[f"{case}_mmdet_rcnn"])])
    rois = jax.tree.map(np.asarray, sample_rows(Sampler(32, 0.25), labels.astype(np.int32), np.zeros(labels.shape, np.float32)))
    assert rois.valid.all()
    np.testing.assert_array_equal(rois.indices[rois.positive], g[f"{case}_mmdet_sample32_pos"])
    np.testing.assert_array_equal(rois.indices[~rois.positive], g[f"{case}_mmdet_sample32_neg"])


@pytest.mark.parametrize("size", [3, 20, 300])
def test_samples_are_the_best_of_each_label(size):
    """Positives are sampled up to their limit; the rest are negatives, however few there are."""
    rng = np.random.default_rng(size)
    count, share = 16, 4
    sampler = Sampler(count, share / count)
    for weights in ([0.2, 0.4, 0.4], [0.0, 0.98, 0.02], [0.9, 0.0, 0.1], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]):
        labels = rng.choice([Match.IGNORE, Match.NEGATIVE, Match.POSITIVE], size=size, p=weights).astype(np.int32)
        priorities = (rng.integers(50, size=size) / 50).astype(np.float32)
        order = np.argsort(-priorities, kind="stable")
        positives = order[labels[order] == Match.POSITIVE][:share].tolist()
        negatives = order[labels[order] == Match.NEGATIVE][: count - len(positives)].tolist()
        masks = sample_masks(sampler, labels, priorities)
        assert [np.flatnonzero(mask).tolist() for mask in masks] == [sorted(positives), sorted(negatives)]
        rois = jax.tree.map(np.asarray, sample_rows(sampler, labels, priorities))
        total = len(positives) + len(negatives)
        assert rois.indices.shape == (count,)
        assert rois.indices[:total].tolist() == positives + negatives
        assert rois.valid.tolist() == [row < total for row in range(count)]
        assert rois.positive.tolist() == [row < len(positives) for row in range(count)]


def test_a_share_of_less_than_one_is_none():
    labels = np.array([Match.POSITIVE, Match.NEGATIVE, Match.NEGATIVE], np.int32)
    rois = jax.tree.map(np.asarray, sample_rows(Sampler(3, 0.25), labels, np.zeros(3, np.float32)))
    assert rois.indices.tolist() == [1, 2, 0]
    assert rois.valid.tolist() == [True, True, False]
    assert not rois.positive.any()


# ---- Losses ----


def test_smooth_l1_equals_the_originals(golden):
    """The sums of maskrcnn-benchmark, fvcore (L1) and mmdetection (over 512 samples) agree."""
    g = two_stage(golden, "data_solver")
    for name, beta, divisor in (
        ("sl1_mrb_b19", 1 / 9, 1),
        ("sl1_mrb_b1", 1.0, 1),
        ("sl1_fv_b0", 0.0, 1),
        ("l1_mmdet_avg512", 0.0, 512),
        ("sl1_mmdet_b1_avg512", 1.0, 512),
    ):
        total = np.sum(distance(g["l1_x"], g["l1_y"], beta)) / divisor
        np.testing.assert_allclose(total, g[name], rtol=1e-6)


def test_smooth_l1_of_literal_distances():
    distances, zeros = np.array([0.0, 0.5, -1.0, 3.0], np.float32), np.zeros(4, np.float32)
    np.testing.assert_allclose(distance(distances, zeros, 1.0), [0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(distance(distances, zeros, 0.0), [0, 0.5, 1, 3])
    slope = jax.jit(jax.grad(lambda x, y: smooth_l1(x, y, 1.0).sum()))
    np.testing.assert_allclose(slope(distances, zeros), [0, 0.5, -1, 1])


def test_focal_loss_is_its_definition():
    """It is maskrcnn-benchmark's formula where float32 suffices, and optax's everywhere.

    Extreme logits have finite gradients.
    """
    logits = np.linspace(-8, 8, 33, dtype=np.float32)
    probability = 1 / (1 + np.exp(-logits))
    loss = partial(sigmoid_focal_loss, alpha=0.25, gamma=2.0)
    run, original = jax.jit(loss), jax.jit(partial(optax.sigmoid_focal_loss, alpha=0.25, gamma=2.0))
    slope = jax.jit(jax.grad(lambda logits, targets: loss(logits, targets).sum()))
    for targets, expected in (
        (np.ones(33, bool), -0.25 * (1 - probability) ** 2 * np.log(probability)),
        (np.zeros(33, bool), -0.75 * probability**2 * np.log(1 - probability)),
    ):
        np.testing.assert_allclose(run(logits, targets), expected, rtol=2e-3)
        np.testing.assert_allclose(run(logits, targets), original(logits, targets), rtol=1e-5)
        gradient = slope(logits * np.float32(1e3), targets)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() == pytest.approx(0.25 if targets.all() else 0.75)
