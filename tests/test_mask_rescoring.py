"""The scores of masks in YOLACT++: their network, their loss, and their way into the results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_yolact

from jaxseg.config import override
from jaxseg.evaluation.coco_metrics import coco_results
from jaxseg.evaluation.masks import encode_rle
from jaxseg.models.yolact.config import LossConfig
from jaxseg.models.yolact.losses import MaskSamples, mask_iou_loss
from jaxseg.predictor import Predictor, as_json

CONFIG = override(tiny_yolact.CONFIG, {"model.mask_iou_channels": (4, 8)})


@functools.cache
def prediction():
    rng = np.random.default_rng(0)
    predictor = Predictor(CONFIG, tiny_yolact.variables(CONFIG), top_k=20)
    return predictor(rng.integers(0, 256, (60, 80, 3), np.uint8))


def test_a_masks_score_is_its_objects_times_the_estimated_iou():
    found = prediction()
    assert len(found) == 20
    # The noise of these weights makes large estimates, and the ReLU some that are 0.
    assert (found.mask_scores >= 0).all()
    assert len(np.unique(found.mask_scores / found.scores)) > 1
    assert (np.diff(found.scores) <= 0).all()


def test_plain_yolact_has_no_scores_of_masks():
    found = Predictor(tiny_yolact.CONFIG, tiny_yolact.variables(), top_k=5)(np.zeros((64, 64, 3), np.uint8))
    assert found.mask_scores is None
    assert "mask_score" not in as_json(found)[0]


def test_results_have_both_scores():
    rows = as_json(prediction())
    np.testing.assert_allclose([row["mask_score"] for row in rows], prediction().mask_scores)
    np.testing.assert_allclose([row["score"] for row in rows], prediction().scores)


def test_boxes_and_masks_are_ranked_by_their_own_scores():
    masks = np.ones((2, 4, 4), bool)
    results = coco_results(
        7,
        boxes=np.array([[0, 0, 4, 4], [1, 1, 3, 3]]),
        classes=np.array([0, 1]),
        scores=np.array([0.9, 0.8]),
        mask_scores=np.array([0.3, 0.7]),
        rles=encode_rle(masks),
        category_ids=(5, 9),
    )
    assert [row["score"] for row in results.boxes] == [0.9, 0.8]
    assert [row["score"] for row in results.masks] == [0.3, 0.7]


def test_masks_that_are_padding_or_too_small_do_not_teach():
    """The target is the IoU of the mask, cut at 1/2, with the object, and the loss is smooth L1."""
    truth = np.zeros((1, 4, 10, 10), bool)
    truth[0, :3, :6, :6], truth[0, 1, 5:, :], truth[0, 1, :, 5:] = True, False, False
    soft = np.zeros((1, 4, 10, 10), np.float32)
    soft[0, :, :6, :3] = 0.6
    masks = MaskSamples(jnp.asarray(soft), jnp.asarray(truth), jnp.zeros((1, 4), jnp.int32), jnp.array([[True, True, False, True]]))
    # The first mask covers half of its object. The second object has 25 pixels, the third row is
    # padding, and the fourth object is empty.
    loss = jax.jit(functools.partial(mask_iou_loss, config=LossConfig()))
    np.testing.assert_allclose(loss(jnp.array([[0.9, 9.0, 9.0, 9.0]]), masks), [0.5 * 0.4**2], rtol=1e-6)
    np.testing.assert_allclose(loss(jnp.array([[2.5, 9.0, 9.0, 9.0]]), masks), [2.0 - 0.5], rtol=1e-6)


@pytest.mark.parametrize(("area", "counts"), [(24.0, True), (25.0, False)])
def test_the_area_of_a_small_mask_is_an_option(area, counts):
    masks = MaskSamples(jnp.ones((1, 1, 5, 5)), jnp.ones((1, 1, 5, 5), bool), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    loss = mask_iou_loss(jnp.zeros((1, 1)), masks, LossConfig(min_mask_iou_area=area))
    assert bool(loss[0] > 0) == counts
