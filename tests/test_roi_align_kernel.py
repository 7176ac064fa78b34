"""The kernels of RoIAlign: interpreted on tiny pyramids, and lowered for CUDA at real shapes.

`test_roi_align.py` compares the plain forms with the compiled operators of the originals. Here the
kernels are compared with the plain forms, and with the sum over samples.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from model_shapes.roi_align import ROI_ALIGN_SHAPES, RoiAlignShape
from test_roi_align import loop_reference

from jaxseg.devices import on_mesh
from jaxseg.ops import implementation as choice
from jaxseg.ops.roi_align import FORMS, kernel, matmul, roi_align
from jaxseg.ops.roi_align.bilinear import Geometry, pixels_of_cell

STRIDES, SIZES = (4, 8), ((6, 10), (3, 5))
# Each of two images has 24 x 40 pixels. The first has an ordinary box, one on the other level that
# is larger than the image, one outside, and padding. The second has a box that extends beyond the
# image, one without area, one smaller than a pixel, and one at the last pixel of the other level.
BOXES = np.array(
    [
        [[3.5, 2.25, 21.0, 19.0], [-9.0, -7.0, 60.0, 50.0], [300.0, 300.0, 340.0, 320.0], [0.0, 0.0, 0.0, 0.0]],
        [[-6.0, 15.0, 13.0, 30.0], [20.0, 5.0, 20.0, 19.0], [17.2, 9.1, 18.0, 9.9], [31.0, 17.0, 40.0, 24.0]],
    ],
    np.float32,
)
LEVELS = np.array([[0, 1, 0, 0], [0, 1, 0, 1]], np.int32)


def pyramid(channels: int, dtype: type = jnp.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, *size, channels)).astype(dtype) for size in SIZES]


def both_ways(**options: object) -> Callable[..., tuple[jax.Array, list[jax.Array]]]:
    """Returns a program that computes the result, and the gradient of the features from its own."""

    @jax.jit
    def run(features: list[jax.Array], boxes: jax.Array, levels: jax.Array, gradient: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        pooled, pull_back = jax.vjp(lambda features: roi_align(features, boxes, levels, strides=STRIDES, **options), features)
        return pooled, pull_back(gradient)[0]

    return run


def assert_near(actual: object, desired: object, relative: float) -> None:
    """Raises an error if a difference exceeds this fraction of the largest value."""

    def compare(one: jax.Array, other: np.ndarray) -> None:
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=0, atol=relative * np.abs(other).max())

    jax.tree.map(compare, actual, desired)


# The sampling ratio and whether boxes are aligned; channels for one program, or for three; the type
# of the features.
CASES = [
    (2, False, 128, jnp.float32),
    (1, True, 384, jnp.float32),
    (3, False, 128, jnp.float32),
    (0, True, 128, jnp.float32),
    (0, False, 256, jnp.bfloat16),
    (2, True, 128, jnp.bfloat16),
]


@pytest.mark.parametrize(
    ("sampling_ratio", "aligned", "channels", "dtype"),
    [pytest.param(*case, marks=[] if i == 0 else pytest.mark.slow) for i, case in enumerate(CASES)],
)
def test_forward_and_gradient(sampling_ratio: int, aligned: bool, channels: int, dtype: type, interpreted: None) -> None:
    """The kernel returns the sum over the samples, and the same gradient as the plain form."""
    features, size = pyramid(channels, dtype), 2
    gradient = np.random.default_rng(1).standard_normal((*LEVELS.shape, size, size, channels)).astype(dtype)
    options = {"output_size": size, "sampling_ratio": sampling_ratio, "aligned": aligned}
    result, pulled = both_ways(**options, implementation="mosaic_gpu")(features, BOXES, LEVELS, gradient)
    _, plain = both_ways(**options, implementation="matmul")(features, BOXES, LEVELS, gradient)
    pooled = np.zeros((*LEVELS.shape, size, size, channels))
    for image, roi in np.ndindex(LEVELS.shape):
        level = LEVELS[image, roi]
        feature = features[level][image].astype(np.float32)
        pooled[image, roi] = loop_reference(feature, BOXES[image, roi], STRIDES[level], size, sampling_ratio, aligned)
    rounding = 2e-6 if dtype == jnp.float32 else 2**-8
    assert result.dtype == pulled[0].dtype == dtype
    assert_near(result, pooled, rounding)
    assert_near(pulled, plain, rounding)


@pytest.mark.slow
def test_many_rois_that_share_pixels(interpreted: None) -> None:
    """There are more RoIs than bits in a word, and the gradient has the same bits in each run."""
    rng, rois = np.random.default_rng(1), 36
    centers, sides = rng.uniform(0, 16, (1, rois, 2)), np.exp(rng.uniform(0, 2.5, (1, rois, 2)))
    boxes = jnp.asarray(np.concatenate([centers - sides / 2, centers + sides / 2], -1), jnp.float32)
    levels, gradient = jnp.zeros((1, rois), jnp.int32), jax.random.normal(jax.random.key(2), (1, rois, 2, 2, 128))
    geometry = Geometry(sizes=((4, 4),), strides=(4,), output_size=2, sampling_ratio=0, aligned=True)
    spread = jax.jit(functools.partial(kernel.spread, geometry))
    pulled = spread(gradient, boxes, levels)
    assert_near(pulled, matmul.spread(geometry, gradient, boxes, levels), 1e-6)
    np.testing.assert_array_equal(pulled[0], spread(gradient, boxes, levels)[0])


SMALL = {"strides": STRIDES, "output_size": 2, "sampling_ratio": 1, "aligned": True}
KERNEL = functools.partial(roi_align, **SMALL, implementation="mosaic_gpu")


def pool_and_gradient(
    implementation: str, features: list[jax.Array], boxes: jax.Array, levels: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    pooled, pull_back = jax.vjp(lambda features: roi_align(features, boxes, levels, **SMALL, implementation=implementation), features)
    return pooled, pull_back(pooled)[0]


by_kernel, plain = functools.partial(pool_and_gradient, "mosaic_gpu"), jax.jit(functools.partial(pool_and_gradient, "matmul"))


def test_under_vmap(interpreted: None) -> None:
    """A batch of batches has the same results and gradients as single images."""
    features, boxes, levels = pyramid(128), BOXES[1:, :2], LEVELS[1:, :2]
    batches = jax.jit(jax.vmap(by_kernel, in_axes=(0, None, None)))([feature[:, None] for feature in features], boxes, levels)
    single = plain(features, np.repeat(boxes, 2, 0), np.repeat(levels, 2, 0))
    assert_near(jax.tree.map(lambda batch: np.asarray(batch)[:, 0], batches), single, 2e-6)


def test_a_batch_over_devices_stays_there(interpreted: None, two_devices: Mesh) -> None:
    """On a mesh each device has a kernel for its images, and nothing moves between them."""
    arguments = pyramid(128), BOXES[:, :2], LEVELS[:, :2]
    sharded = jax.device_put(arguments, NamedSharding(two_devices, PartitionSpec("data")))
    program = jax.jit(on_mesh(by_kernel, two_devices)).lower(*sharded).compile()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
    assert_near(program(*sharded), plain(*arguments), 2e-6)


# These use every kernel; the others differ in sizes, levels and conventions.
SHORT = ("train_c4", "detect_boxes")
LOWERED = [pytest.param(shape, id=shape.name, marks=[] if shape.name in SHORT else pytest.mark.slow) for shape in ROI_ALIGN_SHAPES]


@pytest.mark.parametrize("shape", LOWERED)
def test_lowers_for_cuda_at_real_shapes(shape: RoiAlignShape) -> None:
    dtype = jnp.float32 if shape.batch == 1 else jnp.bfloat16
    features = [jax.ShapeDtypeStruct((shape.batch, *size, shape.channels), dtype) for size in shape.level_sizes]
    boxes = jax.ShapeDtypeStruct((shape.batch, shape.rois, 4), jnp.float32)
    levels = jax.ShapeDtypeStruct((shape.batch, shape.rois), jnp.int32)

    def run(features: list[jax.Array], boxes: jax.Array, levels: jax.Array) -> object:
        pool = functools.partial(roi_align, boxes=boxes, levels=levels, **shape.arguments, implementation="mosaic_gpu")
        if not shape.training:
            return pool(features)
        pooled, pull_back = jax.vjp(pool, features)
        return pooled, pull_back(pooled)

    program = jax.export.export(jax.jit(run), platforms=["cuda"])(features, boxes, levels).mlir_module()
    assert program.count("custom_call @mosaic_gpu") == 1 + shape.training


def test_gpus_have_the_kernel_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with GPUs uses it, except in programs for its CPU."""
    monkeypatch.setattr(choice, "missing_gpu", lambda: None)

    def program(platform: str) -> str:
        return jax.export.export(jax.jit(functools.partial(roi_align, **SMALL)), platforms=[platform])(
            pyramid(128), BOXES, LEVELS
        ).mlir_module()

    assert "custom_call @mosaic_gpu" in program("cuda")
    assert "mosaic_gpu" not in program("cpu")


def test_no_boxes() -> None:
    pooled = jax.eval_shape(KERNEL, pyramid(128), jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), jnp.int32))
    assert pooled.shape == (2, 0, 2, 2, 128)


@pytest.mark.parametrize("cells", [7, 14])
def test_samples_are_counted_exactly_where_division_is_not(cells: int) -> None:
    """Even if a quotient is wrong by two units in the last place, 3 pixels have 3 samples."""
    count_pixels = jax.jit(pixels_of_cell, static_argnums=2)
    whole = np.arange(1, 400, dtype=np.float32)
    sizes = np.stack([whole * cells, np.nextafter(whole * cells, np.inf), np.nextafter(whole * cells, 0)])
    quotient = sizes / np.float32(cells)
    for step in (-2, -1, 0, 1, 2):
        count = count_pixels(sizes, quotient + step * np.spacing(quotient), cells)
        np.testing.assert_array_equal(count, np.ceil(sizes.astype(np.float64) / cells))
    rough = np.array([0, -1e-4, -6], np.float32)
    np.testing.assert_array_equal(count_pixels(np.array([0, -1e-3, -40], np.float32), rough, cells), 0.0)


def test_what_the_kernel_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='"mosaic_gpu" cannot do this: 96 channels are no multiple of 128; "xla" can'):
        jax.eval_shape(KERNEL, pyramid(96), BOXES, LEVELS)
    with pytest.raises(ValueError, match="features are float16, and it takes float32 and bfloat16"):
        jax.eval_shape(KERNEL, pyramid(128, jnp.float16), BOXES, LEVELS)
    with pytest.raises(ValueError, match="'nonsense' is not one of auto, xla, mosaic_gpu, gather, matmul, window"):
        jax.eval_shape(functools.partial(roi_align, **SMALL, implementation="nonsense"), pyramid(128), BOXES, LEVELS)
    # The environment decides if the caller does not.
    monkeypatch.setenv("JAXSEG_IMPLEMENTATION", "mosaic_gpu")
    with pytest.raises(ValueError, match="96 channels"):
        jax.eval_shape(functools.partial(roi_align, **SMALL), pyramid(96), BOXES, LEVELS)
    for name in ("xla", *FORMS):
        plain = functools.partial(roi_align, **SMALL, implementation=name)
        assert jax.eval_shape(plain, pyramid(96), BOXES, LEVELS).shape == (2, 4, 2, 2, 96)
