"""R-CNN without a pyramid, ResNets of other norms and depths, against the originals' own models, built tiny.

See `tiny_detectors` for where the numbers come from.
"""

from typing import Any

import jax
import numpy as np
import pytest
from tiny_detectors import check_detections, check_gradients, gradients, inputs, load, state_dict, training_batch

import jaxseg
from jaxseg.config import Config, override
from jaxseg.models.rcnn import Rcnn
from jaxseg.weights import names_rcnn

# Enough samples for all candidates, so that no random choice is left.
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
    """maskrcnn-benchmark's Mask R-CNN on C4: its numbers, our config and model, and its weights."""
    original = load("c4")
    config = override(jaxseg.load_config("configs/mask_rcnn_r50_c4_1x.py"), TINY | {"model.backbone.stage_sizes": (1, 1, 1, 3)})
    return original, config, jaxseg.build_model(config), jaxseg.load_weights(state_dict(original), config)


def look(model: Rcnn, images: jax.Array, sizes: jax.Array) -> dict[str, Any]:
    """All that detection computes."""
    levels = model.pyramid(images, sizes, train=False)
    return {"levels": levels, "outputs": model(images, sizes), "detections": model.detect(images, sizes)}


def test_c4_detects(c4: Any) -> None:
    """Regions of 14 x 14 cells, C5 to 7 x 7 over all of them, its mean to classes and boxes, its map to masks of 14 x 14 cells."""
    original, _, model, variables = c4
    found = jax.jit(lambda v, *x: model.apply(v, *x, method=look))(variables, *inputs(original))
    outputs = found["outputs"]
    (level,) = found["levels"]
    np.testing.assert_allclose(np.moveaxis(level, -1, 1)[:, ::8], original["c4"], rtol=1e-4, atol=1e-4)
    objectness, deltas = np.moveaxis(original["objectness"], 1, -1), np.moveaxis(original["anchor_deltas"], 1, -1)
    np.testing.assert_allclose(outputs.objectness, objectness.reshape(2, -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs.anchor_deltas, deltas.reshape(2, -1, 4), rtol=1e-4, atol=1e-4)
    for i in (0, 1):
        assert outputs.proposals_valid[i].all()
        np.testing.assert_allclose(outputs.proposals[i], original[f"proposals{i}"], atol=2e-3)
        logits, deltas = original[f"class_logits{i}"], original[f"box_deltas{i}"].reshape(20, 5, 4)
        np.testing.assert_allclose(outputs.class_logits[i], np.roll(logits, -1, 1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs.box_deltas[i], deltas[:, 1:], rtol=1e-4, atol=1e-4)
    assert check_detections(original, found["detections"]) == [10, 10]
    for i in (0, 1):
        np.testing.assert_allclose(found["detections"].masks[i], original[f"detected_masks{i}"], atol=1e-4)


def test_c4_learns(c4: Any) -> None:
    """In training the masks' map is the positive regions' share of the boxes'; all convolutions of C5 learn, its norms do not."""
    original, config, model, variables = c4
    losses, gradient = gradients(model, variables, training_batch(original, mask_crop=16))
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
