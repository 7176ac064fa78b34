"""RoIAlign and the levels of boxes, compared with the compiled operators of the originals.

The originals are maskrcnn-benchmark, detectron2, torchvision and mmcv.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import load_arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg.ops.roi_align import matmul, operation, pyramid_levels, roi_align

# FPN's rule, as each original protects it against rounding errors.
LEVEL_RULES = {
    "mrb": {"pixel_offset": 1.0, "ratio_epsilon": 1e-6},
    "d2": {"ratio_epsilon": 1e-8},
    "tv": {"level_epsilon": 1e-6},
    "mmdet": {"ratio_epsilon": 2.5e-7},
}
# The sampling ratio, and whether boxes are aligned.
POOLING = {"mrb": (2, False), "d2": (0, True), "tv": (2, False), "mmdet": (0, True)}
FORMS = [("gather", 2), ("matmul", 2), ("matmul", 0), ("window", 2), ("window", 0)]
ONE_OF_EACH = [("gather", 2), ("matmul", 0), ("window", 0)]
STRIDES = (4, 8)
SMALL = {"output_size": 2, "sampling_ratio": 2, "aligned": True}
levels_of = jax.jit(pyramid_levels, static_argnames=("finest", "coarsest", "pixel_offset", "ratio_epsilon", "level_epsilon"))
# The input has 96 x 160 pixels. There are ordinary boxes, one along the whole input, one larger
# than it, one outside, one that extends beyond it, two without area, one smaller than a pixel, one
# at the last pixel, and two that are points. Levels 0 and 1 alternate.
BOXES = np.array(
    [
        [10.0, 7.0, 61.0, 40.0],
        [3.5, 12.25, 90.0, 83.0],
        [0.0, 40.0, 160.0, 45.0],
        [-30.0, -20.0, 200.0, 130.0],
        [300.0, 300.0, 340.0, 320.0],
        [-20.0, 60.0, 31.0, 110.0],
        [50.0, 50.0, 50.0, 50.0],
        [20.0, 10.0, 20.0, 70.0],
        [70.2, 30.1, 71.0, 30.9],
        [158.0, 94.0, 160.0, 96.0],
        [0.0, 0.0, 0.0, 0.0],
        [160.0, 96.0, 160.0, 96.0],
    ],
    np.float32,
)
LEVELS = np.arange(len(BOXES), dtype=np.int32) % 2


# The tests with the same shapes and options share a program.
@functools.partial(jax.jit, static_argnames=("strides", "output_size", "sampling_ratio", "aligned", "implementation"))
def both_ways(
    features: list[jax.Array], boxes: jax.Array, levels: jax.Array, gradient: jax.Array, **options: object
) -> tuple[jax.Array, list[jax.Array]]:
    """Computes the result, and the gradient of the features from its own."""
    pooled, pull_back = jax.vjp(lambda features: roi_align(features, boxes, levels, **options), features)
    return pooled, pull_back(gradient.astype(pooled.dtype))[0]


def loop_reference(feature: np.ndarray, box: np.ndarray, stride: int, size: int, sampling_ratio: int, aligned: bool) -> np.ndarray:
    """Pools one RoI sample by sample, as the paper (section 3) and the compiled operators do."""
    height, width, channels = feature.shape
    x1, y1, x2, y2 = box.astype(np.float64) / stride - (0.5 if aligned else 0.0)
    roi_height, roi_width = y2 - y1, x2 - x1
    if not aligned:
        roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
    rows = sampling_ratio or int(np.ceil(roi_height / size))
    columns = sampling_ratio or int(np.ceil(roi_width / size))
    output = np.zeros((size, size, channels))
    for p, q, i, j in np.ndindex(size, size, rows, columns):
        y = y1 + (p + (i + 0.5) / rows) * roi_height / size
        x = x1 + (q + (j + 0.5) / columns) * roi_width / size
        if y < -1 or y > height or x < -1 or x > width:
            continue
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = feature[top, left] * (1 - (x - left)) + feature[top, right] * (x - left)
        lower = feature[bottom, left] * (1 - (x - left)) + feature[bottom, right] * (x - left)
        output[p, q] += upper * (1 - (y - top)) + lower * (y - top)
    return output / max(rows * columns, 1)


def two_images(dtype: type = np.float32) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Makes random features on two levels, with the boxes in order and in reverse."""
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((2, 96 // stride, 160 // stride, 3)).astype(dtype) for stride in STRIDES]
    return features, np.stack([BOXES, BOXES[::-1]]), np.stack([LEVELS, LEVELS[::-1]])


def random_gradient(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def expected(features: list[np.ndarray], boxes: np.ndarray, levels: np.ndarray, **options: object) -> np.ndarray:
    images = [
        [loop_reference(features[level][image], box, STRIDES[level], **options) for box, level in zip(*rows, strict=True)]
        for image, rows in enumerate(zip(boxes, levels, strict=True))
    ]
    return np.array(images)


@pytest.mark.parametrize(("implementation", "sampling_ratio", "aligned"), [(*form, i % 2 == 0) for i, form in enumerate(FORMS)])
def test_every_form_is_the_sum_over_samples(implementation: str, sampling_ratio: int, aligned: bool) -> None:
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned}
    inputs = features, boxes, levels = two_images()
    gradient = random_gradient(*levels.shape, 3, 3, 3)
    pooled, pulled = both_ways(*inputs, gradient, strides=STRIDES, output_size=3, implementation=implementation, **options)
    np.testing.assert_allclose(pooled, expected(features, boxes, levels, size=3, **options), atol=1e-5)
    # RoIAlign is linear in the features, so its gradient is correct if both products with random
    # arrays agree.
    product = sum(np.vdot(feature, back) for feature, back in zip(features, pulled, strict=True))
    np.testing.assert_allclose(product, np.vdot(pooled, gradient), rtol=1e-4)


@pytest.mark.slow
def test_products_with_whole_levels_in_several_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes, levels = two_images()
    gradient = np.ones((*levels.shape, 3, 3, 3), np.float32)
    options = {"strides": STRIDES, "output_size": 3, "implementation": "matmul", "sampling_ratio": 0, "aligned": True}
    at_once = both_ways(features, boxes, levels, gradient, **options)
    # The memory suffices for five RoIs, so there are two iterations with five and one with two.
    monkeypatch.setattr(matmul, "MOST_BYTES", 5 * 3 * (160 // 4) * 3 * 4)
    both_ways.clear_cache()
    rounds = both_ways(features, boxes, levels, gradient, **options)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), at_once, rounds)


@pytest.mark.slow
def test_cpus_gather_many_cells_and_loop_over_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient there is a separate form; with a gradient, both results use the loop.

    All of them agree with any one form.
    """
    features, boxes, levels = jax.tree.map(jnp.asarray, two_images())
    gradient = random_gradient(*levels.shape, 8, 8, 3)
    options = {"strides": STRIDES, "output_size": 8, "sampling_ratio": 2, "aligned": False}
    named = both_ways(features, boxes, levels, gradient, implementation="gather", **options)
    used = []
    for forms in (operation.POOL, operation.SPREAD):
        for name, form in forms.items():
            monkeypatch.setitem(forms, name, lambda *arguments, name=name, form=form: (used.append(name), form(*arguments))[1])
    chosen = both_ways(features, boxes, levels, gradient, **options)
    assert used == ["window", "window"]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), chosen, named)
    used.clear()
    np.testing.assert_allclose(roi_align(features, boxes, levels, **options), named[0], atol=1e-5)
    assert used == ["gather"]
    used.clear()
    roi_align(features, boxes, levels, **{**options, "output_size": 2})
    roi_align(features, boxes, levels, **{**options, "sampling_ratio": 0})
    assert used == ["window", "window"]


@pytest.mark.parametrize(("implementation", "sampling_ratio"), ONE_OF_EACH)
def test_boxes_that_hold_nothing(implementation: str, sampling_ratio: int) -> None:
    """Neither the result nor the gradient is NaN if a box has no area or is far outside."""
    boxes = np.array([[0, 0, 0, 0], [40, 40, 20, 10], [1e6, 1e6, 1e6 + 5, 1e6 + 5], [-1e6, -1e6, 1e6, 1e6]], np.float32)
    # The four boxes come three times in each of two images, which are the shapes of other tests.
    boxes, levels = np.tile(boxes, (2, 3, 1)), np.repeat(np.array([[0, 1, 1]] * 2, np.int32), 4, 1)
    features = [np.ones((2, 96 // stride, 160 // stride, 3), np.float32) for stride in STRIDES]
    gradient = np.ones((*levels.shape, 3, 3, 3), np.float32)
    options = {"sampling_ratio": sampling_ratio, "aligned": True, "implementation": implementation}
    pooled, pulled = both_ways(features, boxes, levels, gradient, strides=STRIDES, output_size=3, **options)
    pooled = np.asarray(pooled)
    if not sampling_ratio:
        np.testing.assert_array_equal(pooled[:, [0, 1, 4, 5]], 0.0)
    np.testing.assert_array_equal(pooled[:, 2::4], 0.0)
    assert all(np.isfinite(level).all() for level in pulled)
    np.testing.assert_allclose(sum(np.sum(level) for level in pulled), pooled.sum(), rtol=1e-5)


def test_no_boxes() -> None:
    pooled = roi_align([jnp.ones((2, 4, 4, 3))], jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), jnp.int32), strides=[4], **SMALL)
    assert pooled.shape == (2, 0, 2, 2, 3)


def test_levels_keep_to_themselves() -> None:
    """If each level is filled with its number, the result for a box is the number of its level."""
    features = [np.full((2, 96 // stride, 160 // stride, 1), level, np.float32) for level, stride in enumerate(STRIDES)]
    _, boxes, levels = two_images()
    inside = (boxes[..., 2] <= 160) & (boxes[..., 0] >= 0)
    pooled = jax.jit(functools.partial(roi_align, strides=STRIDES, **SMALL))(features, boxes, levels)
    np.testing.assert_allclose(np.asarray(pooled)[inside].mean((1, 2, 3)), levels[inside], atol=1e-6)


@pytest.mark.parametrize(("implementation", "sampling_ratio"), ONE_OF_EACH)
def test_bfloat16_features_are_summed_in_float32(implementation: str, sampling_ratio: int) -> None:
    features, boxes, levels = two_images(jnp.bfloat16)
    gradient = np.ones((*levels.shape, 3, 3, 3), np.float32)
    options = {"sampling_ratio": sampling_ratio, "aligned": True, "implementation": implementation, "strides": STRIDES, "output_size": 3}
    results = both_ways(features, boxes, levels, gradient, **options)
    exact = both_ways([feature.astype(np.float32) for feature in features], boxes, levels, gradient, **options)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.bfloat16)}

    def check(one: jax.Array, other: jax.Array) -> None:
        # The results are rounded once, at the end.
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=2**-8, atol=1e-6)

    jax.tree.map(check, results, exact)


def test_only_features_have_a_gradient() -> None:
    features, boxes, levels = two_images()
    total = jax.jit(jax.grad(lambda boxes, features, levels: roi_align(features, boxes, levels, strides=STRIDES, **SMALL).sum()))
    np.testing.assert_array_equal(total(boxes, features, levels), 0.0)


@pytest.mark.parametrize("implementation", ["gather", "matmul"])
def test_a_batch_over_devices_stays_there(implementation: str) -> None:
    """On a mesh neither RoIAlign nor its gradient moves anything between the devices."""
    sharding = NamedSharding(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    arguments = jax.device_put(two_images(), sharding)

    def pool_and_gradient(features: list[jax.Array], boxes: jax.Array, levels: jax.Array) -> tuple[jax.Array, tuple]:
        options = {**SMALL, "sampling_ratio": 1, "implementation": implementation}
        pooled, pull_back = jax.vjp(lambda features: roi_align(features, boxes, levels, strides=STRIDES, **options), features)
        return pooled, pull_back(pooled)

    program = jax.jit(pool_and_gradient).lower(*arguments).compile().as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", program)


def test_what_cannot_be_done_is_said() -> None:
    features, boxes, levels = jax.tree.map(jnp.asarray, two_images())
    with pytest.raises(ValueError, match="2 levels but 1 strides"):
        roi_align(features, boxes, levels, strides=[4], **SMALL)
    with pytest.raises(ValueError, match="needs a fixed sampling_ratio"):
        roi_align(features, boxes, levels, strides=STRIDES, **{**SMALL, "sampling_ratio": 0}, implementation="gather")


def test_levels_change_at_half_and_twice_the_canonical_side() -> None:
    sides = np.array([0.0, 56.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 3000.0], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], -1)
    np.testing.assert_array_equal(levels_of(boxes), [2, 2, 2, 3, 3, 4, 4, 5, 5])
    np.testing.assert_array_equal(levels_of(boxes, finest=3, coarsest=4), [3, 3, 3, 3, 3, 4, 4, 4, 4])
    # With a pixel offset of 1, this box is 112 pixels wide.
    assert levels_of(np.array([[0, 0, 111, 111]], np.float32), pixel_offset=1.0) == 3
    # An epsilon moves a box that is slightly too small to the higher level.
    hair = np.array([[0, 0, 223.9999, 223.9999]], np.float32)
    assert [int(levels_of(hair, **rule)[0]) for rule in ({}, {"ratio_epsilon": 1e-6}, {"level_epsilon": 1e-6})] == [3, 4, 4]


@pytest.mark.parametrize("name", LEVEL_RULES)
def test_levels_of_each_original(golden: Path, name: str) -> None:
    numbers = load_arrays(golden / "two_stage" / "fpn_pool.npz")
    levels = levels_of(np.concatenate([numbers["boxes0"], numbers["boxes1"]]), **LEVEL_RULES[name])
    np.testing.assert_array_equal(np.asarray(levels) - 2, numbers[f"lvl_{name}"])


@pytest.mark.parametrize(
    ("name", "size", "form"),
    [("mrb", 7, "gather"), ("tv", 14, "matmul"), pytest.param("d2", 14, "window", marks=pytest.mark.slow), ("mmdet", 7, "window")],
)
def test_pyramid_pooling_of_each_original(golden: Path, name: str, size: int, form: str) -> None:
    numbers = load_arrays(golden / "two_stage" / "fpn_pool.npz")
    features = [np.moveaxis(numbers[f"feat{level}"], 1, -1) for level in range(4)]
    boxes, row = padded([numbers["boxes0"], numbers["boxes1"]])
    sampling_ratio, aligned = POOLING[name]
    options = {"output_size": size, "sampling_ratio": sampling_ratio, "aligned": aligned, "implementation": form}
    pool = jax.jit(lambda features, boxes, levels: roi_align(features, boxes, levels, strides=(4, 8, 16, 32), **options))
    pooled = np.asarray(pool(features, boxes, np.asarray(levels_of(boxes, **LEVEL_RULES[name])) - 2))
    key = f"{name}_p{size}"
    np.testing.assert_allclose(numbers.kept(np.moveaxis(pooled[row], -1, 1), key), numbers[key], atol=2e-6)


def padded(boxes: list[np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Pads the boxes of two images to the same number of rows, and returns their positions."""
    longest = max(map(len, boxes))
    images = np.repeat([0, 1], [len(rows) for rows in boxes])
    rows = np.concatenate([np.arange(len(rows)) for rows in boxes])
    return np.stack([np.pad(image, ((0, longest - len(image)), (0, 0))) for image in boxes]), (images, rows)


# `test_every_form_is_the_sum_over_samples` has the other convention of each form.
SHORT = [(*form, 7, i % 2 == 1) for i, form in enumerate(FORMS)]
OPERATORS = [
    (*form, size, aligned)
    for form, size in [*((form, 7) for form in FORMS), (("gather", 2), 14), (("window", 0), 14)]
    for aligned in (False, True)
]


@pytest.mark.parametrize(
    ("implementation", "sampling_ratio", "size", "aligned"),
    [pytest.param(*case, marks=[] if case in SHORT else pytest.mark.slow) for case in OPERATORS],
)
def test_compiled_operators(golden: Path, implementation: str, sampling_ratio: int, size: int, aligned: bool) -> None:
    """Results and gradients agree for boxes that are inside, outside, tiny, huge or empty."""
    numbers = load_arrays(golden / "two_stage" / "roi_align.npz")
    image_of = numbers["rois"][:, 0]
    boxes, _ = padded([numbers["rois"][image_of == image, 1:] for image in (0, 1)])
    row = image_of.astype(int), np.array([(image_of[:i] == image).sum() for i, image in enumerate(image_of)])
    levels = np.zeros(boxes.shape[:2], np.int32)
    gradient = np.zeros((*levels.shape, size, size, 3), np.float32)
    gradient[row] = np.moveaxis(numbers[f"gout_p{size}"], 1, -1)
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned, "implementation": implementation}
    features = [np.moveaxis(numbers["feats"], 1, -1)]
    pooled, (pulled,) = both_ways(features, boxes, levels, gradient, strides=(8,), output_size=size, **options)
    key = f"al{int(aligned)}_sr{sampling_ratio}_p{size}"
    pooled, pulled = (np.moveaxis(values, -1, 1) for values in (np.asarray(pooled)[row], pulled))
    np.testing.assert_allclose(numbers.kept(pooled, f"out_{key}"), numbers[f"out_{key}"], atol=2e-6)
    np.testing.assert_allclose(numbers.kept(pulled, f"gin_{key}"), numbers[f"gin_{key}"], rtol=1e-5, atol=1e-5)
