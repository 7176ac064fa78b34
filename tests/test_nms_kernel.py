"""The kernels of NMS: interpreted on short lists, and lowered for CUDA at real shapes.

`test_nms.py` and `test_ops_yolact.py` compare plain JAX with the originals. Here the kernels are
compared with both, bit for bit.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import load_arrays
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from model_shapes.nms import NMS_SHAPES, ClassNmsShape, FastNmsShape, NmsShape
from test_nms import RULES, pixel_boxes

from jaxseg.ops.boxes import quotient_reaches
from jaxseg.ops.nms import by_class, class_nms, cross_class_fast_nms, exact_nms, fast_nms, labelled_nms
from jaxseg.ops.nms.suppression import MOST_BOXES

# The name of a kernel's call in a module for CUDA.
CALL = "mosaic_gpu_v2"
# One of the shapes that differ only in the batch is enough.
SHAPES = {dataclasses.replace(shape, name="", batch=0): shape for shape in NMS_SHAPES}.values()


def both(function, *operands, **options):
    """Returns the results of the kernel for a batch, after a comparison with plain JAX."""
    results = [jax.jit(jax.vmap(partial(function, **options, implementation=name)))(*operands) for name in ("mosaic_gpu", "xla")]
    jax.tree.map(np.testing.assert_array_equal, *results)
    return results[0]


def lowered(function, *operands: np.ndarray) -> str:
    """Lowers a function of a batch to a module for CUDA."""
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    return jax.export.export(jax.jit(jax.vmap(function)), platforms=["cuda"])(*arguments).mlir_module()


def scores_with_ties(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.integers(20, size=shape) / 20).astype(np.float32)


def chain(count: int) -> np.ndarray:
    """Makes boxes that overlap only their neighbours, by 1 / 3, or by 5 / 13 with an offset."""
    left = np.arange(count, dtype=np.float32)[:, None] * 4
    return np.concatenate([left, np.zeros_like(left), left + 8, np.full_like(left, 5)], 1)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.45, 1 / 3, 1.0, 1e-3])
@pytest.mark.parametrize("above", [False, True])
def test_the_comparison_with_the_threshold_is_that_of_the_rounded_quotient(threshold: float, above: bool) -> None:
    """Compilers for GPUs approximate quotients, and the kernels must not.

    All pairs lie within a few units of the last place of the threshold.
    """
    rng = np.random.default_rng(0)
    least = np.float32(threshold)
    if above:
        least = np.nextafter(least, np.float32(2))
    for b in (rng.integers(1, 100_000, 50_000), rng.random(50_000), np.exp2(rng.uniform(-60, 60, 50_000))):
        b = b.astype(np.float32)
        middle = (np.float64(least) + np.nextafter(least, np.float32(0))) / 2
        a = ((b * middle).astype(np.float32).view(np.int32) + rng.integers(-3, 4, b.shape, np.int32)).view(np.float32)
        a = np.concatenate([a, np.round(a), np.zeros_like(a), 2 * a])
        b = np.tile(b, 4)
        expected = a / b >= least
        assert 0.1 < expected.mean() < 0.7
        np.testing.assert_array_equal(quotient_reaches(jnp.asarray(a), jnp.asarray(b), least), expected)


@pytest.mark.parametrize(("platform", "divides"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_cpus_divide(platform: str, divides: bool) -> None:
    """If quotients are approximations, plain JAX compares in the same way as the kernels."""
    boxes, scores = jax.ShapeDtypeStruct((40, 4), jnp.float32), jax.ShapeDtypeStruct((40,), jnp.float32)
    plain = jax.jit(lambda boxes, scores: exact_nms(boxes, scores, scores > 0, iou_threshold=0.5, implementation="xla"))
    assert ("stablehlo.divide" in jax.export.export(plain, platforms=[platform])(boxes, scores).mlir_module()) == divides


def test_a_threshold_of_zero() -> None:
    a, b = np.array([0.0, 1e-3], np.float32), np.array([2.0, 2.0], np.float32)
    assert quotient_reaches(a, b, np.float32(0)).tolist() == [True, True]
    assert quotient_reaches(a, b, np.nextafter(np.float32(0), np.float32(1))).tolist() == [False, True]


def test_fast_nms(interpreted: None) -> None:
    """There are two tiles of 128 boxes, of which some are equal, without area, or invalid.

    There are also equal scores, and IoUs that equal the threshold.
    """
    rng = np.random.default_rng(0)
    boxes, scores = pixel_boxes(rng, 1, 150, picture=25), scores_with_ties(rng, 1, 2, 150)
    kept = both(fast_nms, boxes, scores, rng.random((1, 150)) < 0.9, iou_threshold=0.5, top_k=130, max_detections=200)
    assert (kept.valid.sum(1) > 20).all()
    assert (~kept.valid).any()


def test_cross_class_fast_nms(interpreted: None) -> None:
    """There are fewer priors than `top_k`, and fewer than a tile has."""
    rng = np.random.default_rng(1)
    boxes, scores = pixel_boxes(rng, 2, 60, picture=20) / 16, scores_with_ties(rng, 2, 3, 60)
    kept = both(cross_class_fast_nms, boxes, scores, rng.random((2, 60)) < 0.8, iou_threshold=0.3, top_k=70)
    assert (kept.valid.sum(1) > 10).all()
    assert kept.valid.shape == (2, 70)


KERNEL_RULES = ["strict", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("mmcv_cpu", "mmcv_off1"))]


@pytest.mark.parametrize("rule", KERNEL_RULES)
def test_exact_nms(rule: str, interpreted: None) -> None:
    """The list is longer than a word of 32 boxes and a tile of 128.

    Half of it is the longest chain, with IoUs that equal the threshold. The other half, elsewhere in
    the picture, has clusters with equal scores, equal boxes, empty ones and padding.
    """
    rng = np.random.default_rng(0)
    boxes = np.concatenate([chain(70), pixel_boxes(rng, 70, picture=20) + np.array([0, 100] * 2, np.float32)])
    scores = np.concatenate([np.linspace(1, 0, 70, dtype=np.float32), scores_with_ties(rng, 70)])
    valid = np.concatenate([np.ones(70, bool), rng.random(70) < 0.9])
    threshold = 5 / 13 if rule == "mmcv_off1" else 1 / 3
    (keep,) = both(exact_nms, boxes[None], scores[None], valid[None], iou_threshold=threshold, **RULES[rule])
    np.testing.assert_array_equal(keep[:70], (rule == "strict") | (np.arange(70) % 2 == 0))
    assert 10 < np.sum(keep[70:]) < 60


@pytest.mark.slow
def test_exact_nms_of_levels_of_images(interpreted: None) -> None:
    """Calls of `vmap` are nested, and the levels of an image share the array of valid rows."""
    rng = np.random.default_rng(2)
    boxes, scores, valid = pixel_boxes(rng, 2, 2, 40, picture=25), scores_with_ties(rng, 2, 2, 40), rng.random((2, 40)) < 0.8

    def image(boxes: jax.Array, scores: jax.Array, valid: jax.Array, **options: object) -> jax.Array:
        return jax.vmap(lambda b, s: exact_nms(b, s, valid, **options))(boxes, scores)

    keep = both(image, boxes, scores, valid, iou_threshold=0.3)
    assert 0 < keep.sum() < np.broadcast_to(valid[:, None], keep.shape).sum()


@pytest.mark.parametrize("per_class", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_class_nms(per_class: bool, interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are several iterations, and the images need different numbers of them."""
    monkeypatch.setattr(by_class, "BLOCK_SIZE", 30)
    monkeypatch.setattr(by_class, "KERNEL_ROWS", 60)
    rng = np.random.default_rng(3)
    boxes = pixel_boxes(rng, 2, 25, *([3] if per_class else []), picture=15)
    scores = scores_with_ties(rng, 2, 25, 3) * np.array([1.0, 0.5], np.float32)[:, None, None]
    rule = {"score_threshold": 0.2, "iou_threshold": 0.4, "pixel_offset": 1.0, "suppress_equal": True}
    kept = both(class_nms, boxes, scores, max_detections=20, **rule)
    assert (kept.valid.sum(1) > 10).all()
    assert len(np.unique(kept.classes)) == 3


@pytest.mark.slow
def test_labelled_nms(interpreted: None) -> None:
    """Boxes of different classes do not suppress each other, even with the largest labels."""
    rng = np.random.default_rng(4)
    boxes, scores = pixel_boxes(rng, 1, 60, picture=10), scores_with_ties(rng, 1, 60)
    labels = rng.integers(2, size=(1, 60)).astype(np.int32) + 2**24 - 2
    kept = both(labelled_nms, boxes, scores, labels, score_threshold=0.1, iou_threshold=0.3, max_detections=50)
    alone = both(labelled_nms, boxes, scores, labels * 0, score_threshold=0.1, iou_threshold=0.3, max_detections=50)
    assert kept.valid.sum() > alone.valid.sum() > 3


# `test_exact_nms` compares the kernel with plain JAX, and `test_nms.py` plain JAX with the originals.
@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "mmcv_cpu", "mmcv_off1"])
def test_exact_nms_keeps_what_the_originals_keep(golden, rule: str, interpreted: None) -> None:
    """One launch has all cases with equal scores or IoUs."""
    g = load_arrays(golden / "two_stage" / "nms.npz")
    cases = ("ties", "identical", "degenerate", "exact_thr", "chain")
    boxes, scores, valid = np.zeros((5, 80, 4), np.float32), np.zeros((5, 80), np.float32), np.zeros((5, 80), bool)
    for i, case in enumerate(cases):
        count = len(g[f"{case}_boxes"])
        boxes[i, :count], scores[i, :count], valid[i, :count] = g[f"{case}_boxes"], g[f"{case}_scores"], True
    keep = jax.jit(jax.vmap(partial(exact_nms, iou_threshold=0.5, implementation="mosaic_gpu", **RULES[rule])))(boxes, scores, valid)
    for i, case in enumerate(cases):
        np.testing.assert_array_equal(np.flatnonzero(keep[i]), np.sort(g[f"{case}_t50_{rule}"]), err_msg=case)


def test_nothing_to_suppress() -> None:
    """Without boxes there is no kernel."""
    boxes, scores, none = np.zeros((0, 4), np.float32), np.zeros((3, 0), np.float32), np.zeros(0, bool)
    rule = {"iou_threshold": 0.5, "implementation": "mosaic_gpu"}
    assert jax.jit(partial(exact_nms, **rule))(boxes, scores[0], none).shape == (0,)
    kept = jax.jit(partial(fast_nms, **rule, top_k=5, max_detections=2))(boxes, scores, none)
    assert kept.valid.tolist() == [False, False]


def test_a_list_too_long_for_the_kernel_says_so() -> None:
    count = MOST_BOXES + 1
    arguments = (
        jax.ShapeDtypeStruct((count, 4), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.float32),
        jax.ShapeDtypeStruct((count,), bool),
    )
    with pytest.raises(ValueError, match='"mosaic_gpu" cannot do this: 32769 boxes of one list, and 32768 are the most; "xla" can'):
        jax.eval_shape(partial(exact_nms, iou_threshold=0.5, implementation="mosaic_gpu"), *arguments)


def test_each_device_suppresses_its_own_images(interpreted: None, two_devices: Mesh) -> None:
    """Each of two devices has half of the images, and nothing is gathered for the kernel."""
    half = NamedSharding(two_devices, PartitionSpec("data"))
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=half) for shape, dtype in (((4, 40, 4), jnp.float32), ((4, 40), jnp.float32))]

    def image(boxes: jax.Array, scores: jax.Array) -> jax.Array:
        return exact_nms(boxes, scores, scores > 0, iou_threshold=0.5, implementation="mosaic_gpu")

    with jax.set_mesh(two_devices):
        compiled = jax.jit(jax.vmap(image), out_shardings=half).lower(*arguments).compile().as_text()
    assert "all-" not in compiled
    # Each device has two of the four lists, with a word of bits for every box.
    assert "s32[2,16,128]" in compiled
    assert "s32[4,16,128]" not in compiled


# Both operations of Fast NMS. The kernels of the others take seconds to lower, and
# `test_a_gradient_does_not_see_the_kernel` lowers them too.
SHORT = ("fast_80x200", "cross_yolact550_batch8")


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, id=shape.name, marks=[] if shape.name in SHORT else pytest.mark.slow) for shape in SHAPES]
)
def test_lowers_for_cuda_at_real_shapes(shape: NmsShape) -> None:
    """There is one kernel for Fast NMS and there are two for the others, whatever the batch.

    This needs no GPU.
    """
    if isinstance(shape, FastNmsShape):
        function, kernels = cross_class_fast_nms if shape.cross_class else fast_nms, 1
    elif isinstance(shape, ClassNmsShape):
        function, kernels = labelled_nms if shape.labelled else class_nms, 2
    else:
        function, kernels = exact_nms, 2
    run = partial(function, **shape.arguments, implementation="mosaic_gpu")
    if function is exact_nms:
        run = jax.vmap(run)
    operands = [x for x in shape.inputs(0) if x is not None]
    assert lowered(run, *operands).count(CALL) == kernels


def test_a_gradient_does_not_see_the_kernel() -> None:
    """Training suppresses proposals before it computes its losses."""

    def loss(boxes: jax.Array, scores: jax.Array) -> jax.Array:
        fixed = jax.lax.stop_gradient((boxes, scores))
        return (boxes.sum(1) * exact_nms(*fixed, fixed[1] > 0, iou_threshold=0.5, implementation="mosaic_gpu")).sum()

    assert lowered(jax.grad(loss), np.zeros((2, 40, 4), np.float32), np.zeros((2, 40), np.float32)).count(CALL) == 2
