"""R-CNN without a pyramid, and ResNets of other norms and depths, compared with tiny originals.

`tiny_detectors` explains the origin of the numbers.
"""

from typing import Any

import jax
import numpy as np
import pytest
from tiny_detectors import check_detections, check_gradients, inputs, learning, load, state_dict, training_batch

import jaxseg
from jaxseg.config import Config, override
from jaxseg.models import RESNET152
from jaxseg.models.rcnn.network import Rcnn
from jaxseg.weights.names import rcnn as names_rcnn
from jaxseg.weights.names import retinanet as names_retinanet

# There are samples for all candidates, so that nothing is chosen at random.
TINY = {
    "model.num_classes": 4,
    "model.backbone.width": 8,
    "model.anchor_sizes": ((16.0, 32.0, 64.0),),
    "model.rpn.samples": 4096,
    "model.rpn.pre_nms_train": 200,
    "model.rpn.pre_nms_test": 100,
    "model.rpn.post_nms_train": 40,
    "model.rpn.post_nms_test": 20,
    "model.roi.samples": 64,
    "model.roi.positive_fraction": 0.5,
    "model.roi.max_detections": 10,
    "model.roi.score_threshold": 0.1,
    "model.roi.mask_channels": 16,
    "model.roi.mask_crop_size": 16,
    "model.input.shapes": ((96, 128),),
    "model.dtype": "float32",
}


@pytest.fixture(scope="module")
def c4() -> tuple[dict[str, np.ndarray], Config, Rcnn, dict[str, Any]]:
    """maskrcnn-benchmark's Mask R-CNN on C4: numbers, our configuration, our model and weights."""
    original = load("c4")
    config = override(jaxseg.load_config("configs/mask_rcnn_r50_c4_1x.py"), TINY | {"model.backbone.stage_sizes": (1, 1, 1, 3)})
    return original, config, jaxseg.build_model(config), jaxseg.load_weights(state_dict(original), config)


@pytest.fixture(scope="module")
def dilated_c5() -> tuple[dict[str, np.ndarray], Config, Rcnn, dict[str, Any]]:
    """The same of detectron2's Mask R-CNN on a dilated C5."""
    original = load("dc5")
    changes = {"model.backbone.stage_sizes": (1, 1, 1, 2), "model.roi.box_features": 16, "model.roi.mask_convolutions": 2}
    config = override(jaxseg.load_config("configs/mask_rcnn_r50_dc5_3x_detectron2.py"), TINY | changes)
    return original, config, jaxseg.build_model(config), jaxseg.load_weights(state_dict(original), config)


def look(model: Rcnn, images: jax.Array, sizes: jax.Array) -> dict[str, Any]:
    """Computes all intermediate and final results of detection."""
    levels = model.pyramid(images, sizes, train=False)
    return {"levels": levels, "outputs": vars(model(images, sizes)), "detections": model.detect(images, sizes)}


@pytest.mark.slow
def test_c4_detects(c4: Any) -> None:
    """C5 turns regions of 14 x 14 cells into maps of 7 x 7.

    The mean of a map gives classes and boxes, and the map itself gives masks of 14 x 14 cells.
    """
    original, _, model, variables = c4
    found = jax.device_get(jax.jit(lambda v, *x: model.apply(v, *x, method=look))(variables, *inputs(original)))
    outputs = found["outputs"]
    (level,) = found["levels"]
    np.testing.assert_allclose(np.moveaxis(level, -1, 1)[:, ::8], original["c4"], rtol=1e-4, atol=1e-4)
    objectness, deltas = np.moveaxis(original["objectness"], 1, -1), np.moveaxis(original["anchor_deltas"], 1, -1)
    np.testing.assert_allclose(outputs["objectness"], objectness.reshape(2, -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs["anchor_deltas"], deltas.reshape(2, -1, 4), rtol=1e-4, atol=1e-4)
    for i in (0, 1):
        assert outputs["proposals_valid"][i].all()
        np.testing.assert_allclose(outputs["proposals"][i], original[f"proposals{i}"], atol=2e-3)
        logits, deltas = original[f"class_logits{i}"], original[f"box_deltas{i}"].reshape(20, 5, 4)
        np.testing.assert_allclose(outputs["class_logits"][i], np.roll(logits, -1, 1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs["box_deltas"][i], deltas[:, 1:], rtol=1e-4, atol=1e-4)
    assert check_detections(original, found["detections"]) == [10, 10]
    for i in (0, 1):
        np.testing.assert_allclose(found["detections"].masks[i], original[f"detected_masks{i}"], atol=1e-4)


def test_c4_learns(c4: Any) -> None:
    """In training, the mask head uses the maps of the positive regions that the box head computed.

    All convolutions of C5 learn, and its norms do not.
    """
    original, config, model, variables = c4
    losses, gradient = learning(model, variables)(training_batch(original, mask_crop=16))
    for ours, theirs in (
        ("rpn_class", "objectness"),
        ("rpn_box", "rpn_box_reg"),
        ("class", "classifier"),
        ("box", "box_reg"),
        ("mask", "mask"),
    ):
        np.testing.assert_allclose(losses[ours], original[f"loss/loss_{theirs}"], rtol=1e-4, err_msg=ours)
    check_gradients(original, config, gradient, variables, names_rcnn.MASKRCNN_BENCHMARK)
    assert model.learns(("box_head", "stage4_block0", "conv1", "kernel"))
    assert not model.learns(("box_head", "stage4_block0", "bn1", "scale"))


def test_dilated_c5_detects(dilated_c5: Any) -> None:
    """All blocks of C5 have C4's resolution; proposals, regions and masks are made from C5."""
    original, _, model, variables = dilated_c5
    found = jax.device_get(jax.jit(lambda v, *x: model.apply(v, *x, method=look))(variables, *inputs(original)))
    outputs = found["outputs"]
    (level,) = found["levels"]
    assert level.shape == (2, 96 // 16, 128 // 16, 32 * 8)
    np.testing.assert_allclose(np.moveaxis(level, -1, 1)[:, ::8], original["c5"], rtol=1e-4, atol=1e-4)
    # The original's anchors are ordered by size, then by aspect ratio.
    objectness = original["objectness"].reshape(2, 3, 3, 6, 8).transpose(0, 3, 4, 2, 1)
    np.testing.assert_allclose(outputs["objectness"], objectness.reshape(2, -1), rtol=1e-4, atol=1e-4)
    for i in (0, 1):
        assert outputs["proposals_valid"][i].all()
        np.testing.assert_allclose(outputs["proposals"][i], original[f"proposals{i}"], atol=2e-3)
        np.testing.assert_allclose(outputs["class_logits"][i], original[f"class_logits{i}"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs["box_deltas"][i], original[f"box_deltas{i}"].reshape(20, 4, 4), rtol=1e-4, atol=1e-4)
    assert check_detections(original, found["detections"]) == [10, 10]
    for i in (0, 1):
        np.testing.assert_allclose(found["detections"].masks[i, :, ::3, ::3], original[f"detected_masks{i}"], atol=1e-4)


@pytest.mark.slow
def test_dilated_c5_learns(dilated_c5: Any) -> None:
    original, config, model, variables = dilated_c5
    losses, gradient = learning(model, variables)(training_batch(original, mask_crop=16))
    for ours, theirs in (("rpn_class", "rpn_cls"), ("rpn_box", "rpn_loc"), ("class", "cls"), ("box", "box_reg"), ("mask", "mask")):
        np.testing.assert_allclose(losses[ours], original[f"loss/loss_{theirs}"], rtol=1e-4, err_msg=ours)
    check_gradients(original, config, gradient, variables, names_rcnn.DETECTRON2)


@pytest.mark.slow
def test_group_norm() -> None:
    """A RetinaNet of maskrcnn-benchmark with group norm agrees in its pyramid and losses.

    Its gradients agree, too, with those of the norms.
    """
    original = load("group_norm")
    changes = {
        "model.num_classes": 4,
        "model.backbone.stage_sizes": (1, 1, 1, 1),
        "model.backbone.width": 32,
        "model.backbone.norm": "group",
        "model.backbone.norm_epsilon": 1e-5,
        "model.fpn_channels": 8,
        "model.head_convolutions": 1,
        "model.input.shapes": ((64, 96),),
        "model.dtype": "float32",
    }
    config = override(jaxseg.load_config("configs/retinanet_r50_fpn_1x.py"), changes)
    model, variables = jaxseg.build_model(config), jaxseg.load_weights(state_dict(original), config)
    assert variables.keys() == {"params"}
    levels = jax.jit(lambda v, *x: model.apply(v, *x, train=False, method="pyramid"))(variables, *inputs(original))
    for level, ours in enumerate(levels, 3):
        np.testing.assert_allclose(np.moveaxis(ours, -1, 1)[:, ::2], original[f"p{level}"], rtol=1e-4, atol=1e-4)
    losses, gradient = learning(model, variables)(training_batch(original))
    np.testing.assert_allclose(losses["class"], original["loss/loss_retina_cls"], rtol=1e-5)
    check_gradients(original, config, gradient, variables, names_retinanet.MASKRCNN_BENCHMARK)
    assert model.learns(("backbone", "stage2_block0", "bn1", "scale"))
    assert not model.learns(("backbone", "stage1_block0", "bn1", "scale"))


def test_resnet_152() -> None:
    """The number of parameters is that of torchvision's resnet152 without its classifier.

    These are 60,192,808 and 2,049,000.
    """
    config = override(jaxseg.load_config("configs/mask_rcnn_r50_fpn_1x.py"), {"model.backbone.stage_sizes": RESNET152.stage_sizes})
    variables = jax.eval_shape(lambda: jaxseg.init_variables(jaxseg.build_model(config), config))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["backbone"])) == 60_192_808 - 2_049_000
