"""The shapes of real models that tests and benchmarks share.

They have the originals' sizes, and inputs on which the operations do realistic work.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_shapes.inputs import boxes_around_objects
from model_shapes.nms import CLASS_NMS_SHAPES, EXACT_NMS_SHAPES, FAST_NMS_SHAPES, NMS_SHAPES
from model_shapes.roi_align import ROI_ALIGN_SHAPES

from jaxseg.ops.nms import exact_nms


def named(name: str, shapes: tuple) -> Any:
    return next(shape for shape in shapes if shape.name == name)


def test_names_are_unique():
    names = [shape.name for shape in (*ROI_ALIGN_SHAPES, *NMS_SHAPES)]
    assert len(set(names)) == len(names)


def test_the_priors_are_yolacts():
    """At 550 pixels there are 69, 35, 18, 9 and 5 cells per side, with three shapes each."""
    shape = named("fast_yolact550", FAST_NMS_SHAPES)
    assert (shape.priors, shape.classes, shape.top_k, shape.max_detections) == (19248, 80, 200, 100)


def test_regions_and_proposals_are_those_of_the_originals():
    """Inputs are 800 x 1333, padded; there are 512 regions, and a quarter of them have masks.

    There are 2000 proposals per level, except for P6, which has fewer anchors.
    """
    boxes, masks = named("train_boxes", ROI_ALIGN_SHAPES), named("train_masks", ROI_ALIGN_SHAPES)
    assert boxes.level_sizes == ((200, 336), (100, 168), (50, 84), (25, 42))
    assert [(shape.rois, shape.output_size, shape.sampling_ratio) for shape in (boxes, masks)] == [(512, 7, 2), (128, 14, 2)]
    assert (named("train_boxes_adaptive", ROI_ALIGN_SHAPES).sampling_ratio, named("train_c4", ROI_ALIGN_SHAPES).channels) == (0, 1024)
    assert named("proposals_train", EXACT_NMS_SHAPES).counts == (2000, 2000, 2000, 2000, 13 * 21 * 3)
    assert named("detections_retinanet", CLASS_NMS_SHAPES).boxes == 5000


def test_boxes_spread_over_the_pyramid_as_objects_of_coco_do():
    """About 4 in 10 objects of COCO are smaller than 32 x 32, and a quarter is larger than 96 x 96.

    These are sides of 53 and of 160 pixels at the size of the input.
    """
    boxes = boxes_around_objects(np.random.default_rng(0), (20, 512), (800, 1344))
    side = np.sqrt((boxes[..., 2:] - boxes[..., :2]).prod(-1))
    assert 0.3 < (side < 53).mean() < 0.5
    assert 0.15 < (side > 160).mean() < 0.3
    assert boxes.min() >= 0
    assert boxes.reshape(-1, 4).max(0).tolist() <= [1344, 800] * 2


@pytest.mark.slow
def test_regions_come_from_every_level_and_are_the_same_for_a_seed():
    shape = named("train_boxes", ROI_ALIGN_SHAPES).tiny()
    inputs = shape.inputs(3, jnp.bfloat16)
    assert np.unique(inputs.levels).tolist() == [0, 1, 2, 3]
    assert {feature.dtype for feature in inputs.features} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, inputs, shape.inputs(3, jnp.bfloat16))
    assert not np.array_equal(inputs.boxes, shape.inputs(4).boxes)


@pytest.mark.slow
def test_suppression_has_work_and_ties():
    shape = named("proposals_detect", EXACT_NMS_SHAPES)
    boxes, scores, valid = (array[0, 0] for array in shape.inputs(0))
    kept = exact_nms(boxes, jnp.asarray(scores), valid, **shape.arguments)
    assert 0.2 < kept.mean() < 0.8
    assert len(np.unique(scores)) < 0.95 * len(scores)


def test_few_priors_pass_the_threshold():
    shape = named("fast_yolact550", FAST_NMS_SHAPES)
    _, scores, candidates = shape.inputs(0)
    np.testing.assert_array_equal(candidates, scores.max(1) > shape.score_threshold)
    assert 0.01 < candidates.mean() < 0.1
    assert (scores[0] > shape.score_threshold).sum(1).min() >= 1
