"""RetinaNet, compared with a tiny model of maskrcnn-benchmark.

`tiny_detectors` explains the origin of the numbers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_detectors import check_detections, check_gradients, inputs, learning, load, state_dict, training_batch

import jaxseg
from jaxseg.config import Config, override
from jaxseg.models import MASKRCNN_BENCHMARK, RetinaNetConfig
from jaxseg.models.retinanet.network import PRIOR_PROBABILITY, RetinaNet, RetinaNetHead, anchor_sums
from jaxseg.ops.anchors import cell_anchors
from jaxseg.structures import Batch, Targets
from jaxseg.weights.names import retinanet as names_retinanet

LEVELS = range(3, 8)
TINY = {
    "model.num_classes": 4,
    "model.backbone.stage_sizes": (1, 1, 1, 1),
    "model.backbone.width": 8,
    "model.fpn_channels": 16,
    "model.pre_nms": 100,
    "model.max_detections": 40,
    "model.input.shapes": ((96, 128),),
    "model.dtype": "float32",
}


@pytest.fixture(scope="module")
def original() -> dict[str, np.ndarray]:
    return load("retinanet")


@pytest.fixture(scope="module")
def config() -> Config:
    return override(jaxseg.load_config("configs/retinanet_r50_fpn_1x.py"), TINY)


@pytest.fixture(scope="module")
def model(config: Config) -> RetinaNet:
    return jaxseg.build_model(config)


@pytest.fixture(scope="module")
def variables(original: dict[str, np.ndarray], config: Config) -> dict[str, Any]:
    """Loads the original's weights by their own names."""
    return jaxseg.load_weights(state_dict(original), config)


@pytest.fixture(scope="module")
def learn(model: RetinaNet, variables: dict[str, Any]) -> Callable[[Batch], tuple[dict[str, float], dict[str, np.ndarray]]]:
    return learning(model, variables)


@pytest.fixture(scope="module")
def found(original: dict[str, np.ndarray], model: RetinaNet, variables: dict[str, Any]) -> dict[str, Any]:
    """Computes all intermediate and final results of detection on the two pictures."""

    def look(model: RetinaNet, images: jax.Array, sizes: jax.Array) -> dict[str, Any]:
        levels = model.pyramid(images, sizes, train=False)
        return {"levels": levels, "head": model.head(levels), "detections": model.detect(images, sizes)}

    return jax.device_get(jax.jit(lambda v, *x: model.apply(v, *x, method=look))(variables, *inputs(original)))


def test_the_pyramid(original: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    """P6 is computed from C5, and P7 from a ReLU of P6; every fourth channel is compared."""
    for level, ours in zip(LEVELS, found["levels"], strict=True):
        np.testing.assert_allclose(np.moveaxis(ours, -1, 1)[:, ::4], original[f"p{level}"], rtol=1e-4, atol=1e-4)


def test_the_head(original: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    """Channels are ordered by anchor, then by class; anchors are ordered by y, x and shape."""
    for level, logits, deltas in zip(LEVELS, *found["head"], strict=True):
        for name, ours in (("logits", logits[0]), ("deltas", deltas[0])):
            theirs = original[f"{name}{level}"]
            theirs = np.moveaxis(theirs, 0, -1).reshape(-1, len(theirs) // 9)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=f"{name} of P{level}")


def test_the_detections(original: dict[str, np.ndarray], found: dict[str, Any]) -> None:
    """The score threshold is 0.05, each level has 100 candidates, and there are 40 detections.

    The IoU threshold of suppression within a class is 0.4.
    """
    assert check_detections(original, found["detections"]) == [40, 40]


def test_the_losses_and_what_learns(original: dict[str, np.ndarray], config: Config, variables: dict[str, Any], learn: Any) -> None:
    """The losses of a batch of two and the gradient of their sum agree with the original.

    The frozen stem, the frozen C2 and all batch norms have no gradient.
    """
    losses, gradient = learn(training_batch(original))
    assert losses.keys() == {"class", "box"}
    np.testing.assert_allclose(losses["class"], original["loss/loss_retina_cls"], rtol=1e-5)
    np.testing.assert_allclose(losses["box"], original["loss/loss_retina_reg"], rtol=1e-5)
    check_gradients(original, config, gradient, variables, names_retinanet.MASKRCNN_BENCHMARK)


def test_images_that_fill_up_a_batch_do_not_count(original: dict[str, np.ndarray], learn: Any) -> None:
    """Neither their anchors nor the images themselves count in the normaliser of the class loss."""
    batch = training_batch(original)
    alone, _ = learn(jax.tree.map(lambda x: np.stack([x[0], x[0]]), batch).replace(valid=np.array([True, False])))
    other, _ = learn(batch.replace(valid=np.array([True, False])))
    twice, _ = learn(jax.tree.map(lambda x: np.stack([x[0], x[0]]), batch))
    for name in alone:
        np.testing.assert_allclose(alone[name], other[name], rtol=1e-6)
        np.testing.assert_allclose(alone[name], twice[name], rtol=1e-6)


def test_an_image_without_objects_teaches_the_background(config: Config) -> None:
    """The original cannot train on such an image."""
    anchors = np.float32([[0, 0, 15, 15], [8, 8, 71, 71]])
    nothing = Targets(np.zeros((2, 4), np.float32), np.zeros(2, np.int32), np.zeros(2, bool), np.zeros(2, bool), None, None)
    one_image = jax.jit(functools.partial(anchor_sums, anchors=anchors, config=config.model))
    sums = one_image(np.full((2, 4), 0.3, np.float32), np.ones((2, 4), np.float32), nothing, np.int32([96, 128]))
    p = 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(sums.classification, 8 * 0.75 * p**2 * -np.log(1 - p), rtol=1e-5)
    assert (sums.box, sums.positives) == (0, 0)


def test_anchors_between_the_thresholds_teach_nothing_and_all_others_do(config: Config) -> None:
    """The second anchor has an IoU of 0.45; the third extends beyond the picture, but learns."""
    anchors = np.float32([[0, 0, 19, 19], [0, 0, 8, 19], [-90, -90, 9, 9]])
    objects = Targets(np.float32([[0, 0, 19, 19]]), np.int32([2]), np.ones(1, bool), np.zeros(1, bool), None, None)

    def classification(logits: jax.Array) -> jax.Array:
        sums = anchor_sums(logits, jnp.zeros((3, 4)), objects, jnp.array([96, 128]), anchors=anchors, config=config.model)
        return sums.classification

    slopes = jax.jit(jax.grad(classification))(np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(np.sign(slopes), [[1, 1, -1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])


def test_the_default_anchors(original: dict[str, np.ndarray]) -> None:
    """The anchors equal those of the original to the last bit.

    A window of the stride's size is rounded to whole numbers first, and then scaled to three
    octaves.
    """
    model = RetinaNetConfig()
    assert model.conventions == dataclasses.replace(MASKRCNN_BENCHMARK, anchor_border=-1.0)
    for level, stride, sizes in zip(LEVELS, (8, 16, 32, 64, 128), model.anchor_sizes, strict=True):
        cells = cell_anchors(sizes, model.anchor_aspect_ratios, stride=stride, rule="legacy")
        np.testing.assert_array_equal(cells, original[f"cell{level}"], err_msg=f"P{level}")


def test_mmdetections_anchors() -> None:
    """The anchors of the first cell equal those that mmdetection's RetinaNet computed.

    Their sizes are 4, 4 * 2**(1/3) and 4 * 2**(2/3) times the stride of 8.
    """
    sizes = RetinaNetConfig().anchor_sizes[0]
    cells = cell_anchors(sizes, (0.5, 1.0, 2.0), stride=8, rule="exact")
    np.testing.assert_allclose(cells[:, 2], [22.627417, 28.508759, 35.918785, 16, 20.158737, 25.398417, 11.313708, 14.254379, 17.959393])
    np.testing.assert_allclose(cells[:, 3], cells[::-1][[2, 1, 0, 5, 4, 3, 8, 7, 6], 2])


def test_a_fresh_head() -> None:
    """Initially, classes have a probability of 0.01, and kernels are small."""
    head = RetinaNetHead(channels=16, convolutions=2, num_anchors=9, num_classes=4, dtype=jnp.float32)
    params = jax.device_get(jax.jit(head.init)(jax.random.key(0), (np.zeros((1, 2, 2, 16), np.float32),)))["params"]
    assert sorted(params) == sorted([f"{name}_conv{i}" for name in ("class", "box") for i in (1, 2)] + ["class", "box"])
    np.testing.assert_allclose(1 / (1 + np.exp(-params["class"]["bias"])), PRIOR_PROBABILITY, rtol=1e-5)
    assert not np.any(params["box"]["bias"])
    for layer in params.values():
        assert 0.008 < np.std(layer["kernel"]) < 0.012


def test_the_input(model: RetinaNet) -> None:
    """The detector requires no masks, and its boxes end in their last pixel."""
    spec = model.input_spec
    assert spec.input_sizes == ((96, 128),)
    assert (spec.mask_size, spec.semantic_size, spec.pixel_offset, spec.resize.rule) == (None, None, 1.0, "pillow_truncated")
