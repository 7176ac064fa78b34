"""Training batches with pictures that have only crowd regions, or no objects at all.

The other losses are computed as usual, and everything stays finite.
"""

from typing import Any

import jax
import numpy as np
import pytest
import tiny_yolact

from jaxseg.config import Config, load_config
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.views.from_spec import view_rule
from jaxseg.models import Detector, build_model
from jaxseg.structures import Batch, Targets

# The sizes are small enough to compile in seconds; the picture covers all but the last row of
# cells.
CANVAS, PICTURE = (64, 96), (60, 96)
TINY = {
    "model.num_classes": 3,
    "model.backbone.stage_sizes": (1, 1, 1, 1),
    "model.backbone.width": 4,
    "model.fpn_channels": 8,
    "model.input.shorter_side": (60,),
    "model.input.longer_side": 96,
    "model.input.shapes": (CANVAS,),
    "model.dtype": "float32",
    "data.class_names": ("a", "b", "c"),
    "data.category_ids": (1, 2, 3),
}
TINY_RCNN = TINY | {
    "model.anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
    "model.rpn.pre_nms_train": 50,
    "model.rpn.post_nms_train": 50,
    "model.roi.samples": 32,
    "model.roi.box_features": 16,
    "model.roi.mask_channels": 8,
    "model.roi.mask_convolutions": 1,
    "model.roi.mask_crop_size": 32,
}
# Without a pyramid, regions are pooled from one level, which takes a third of the time to compile.
ONE_LEVEL = {"model.neck": "dilated_c5", "model.anchor_sizes": ((8, 16, 32, 64, 128),)}
DETECTORS = {
    "maskrcnn-benchmark's Mask R-CNN": ("mask_rcnn_r50_fpn_1x", TINY_RCNN),
    "mmdetection's Faster R-CNN": ("faster_rcnn_r50_fpn_1x", TINY_RCNN | ONE_LEVEL),
    "RetinaNet": ("retinanet_r50_fpn_1x", TINY | {"model.head_convolutions": 1}),
}
# The losses that need an object.
OF_OBJECTS = {"rpn_box", "box", "mask"}
ROWS = 4


class Learner:
    """A tiny detector, and one compiled program for its losses and their gradient."""

    def __init__(self, config: Config):
        self.model: Detector = build_model(config)
        variables = tiny_yolact.variables(config)

        def total(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            rngs = {"sampling": jax.random.key(0)}
            losses = self.model.apply(variables | {"params": params}, batch, train=True, method="losses", rngs=rngs)
            return sum(losses.values()), losses

        program = jax.jit(jax.value_and_grad(total, has_aux=True))
        self._run = lambda batch: program(variables["params"], batch)

    def __call__(self, *targets: Targets, valid: tuple[bool, ...] = (True, True)) -> tuple[dict[str, float], list[np.ndarray]]:
        """Returns the losses and the gradients for two pictures of noise."""
        images = np.random.default_rng(0).integers(0, 256, (2, *CANVAS, 3), dtype=np.uint8)
        stacked = jax.tree.map(lambda *rows: np.stack(rows), *targets)
        sizes = np.array([PICTURE] * 2, np.int32)
        (_, losses), gradient = self._run(Batch(images, sizes, np.arange(2, dtype=np.int32), np.array(valid), stacked))
        return {name: float(value) for name, value in losses.items()}, jax.tree.leaves(jax.device_get(gradient))

    def targets(self, *boxes: tuple[float, ...], crowd: bool = False) -> Targets:
        """Makes the ground truth of a picture in the usual way; masks fill the boxes."""
        masks = np.zeros((len(boxes), *PICTURE), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[round(y1) : round(y2), round(x1) : round(x2)] = 1
        rows = len(boxes)
        sample = Sample(
            image=np.zeros((*PICTURE, 3), np.uint8),
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            classes=np.ones(rows, np.int32),
            crowd=np.full(rows, crowd),
            masks=masks if self.model.input_spec.mask_size else None,
            index=0,
        )
        spec = self.model.input_spec
        return to_targets(sample, view_rule(spec).whole(sample.picture_size), spec, ROWS)


# Mask R-CNN takes the longest to compile.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if "Mask" in name else []) for name in DETECTORS],
)
def learner(request: pytest.FixtureRequest) -> Learner:
    name, changes = DETECTORS[request.param]
    return Learner(load_config(f"configs/{name}.py", changes))


def test_pictures_without_ordinary_objects_teach_background_only(learner: Learner) -> None:
    """There are only crowds, no annotations, or only boxes that the originals' rules drop."""
    crowds = learner.targets((8, 8, 40, 40), (50, 10, 90, 50), crowd=True)
    # One box has a side of less than a pixel, and the other is outside of the picture.
    dropped = learner.targets((8, 8, 8.5, 40), (97, 10, 120, 50))
    assert (int(crowds.valid.sum()), int(dropped.valid.sum())) == (2, 0)
    for one, other in ((crowds, crowds), (dropped, dropped), (crowds, learner.targets())):
        losses, gradient = learner(one, other)
        assert {name for name, value in losses.items() if value == 0} == OF_OBJECTS & losses.keys()
        assert all(np.isfinite(value) for value in losses.values())
        assert all(np.isfinite(leaf).all() for leaf in gradient)
        assert any(leaf.any() for leaf in gradient)


def test_a_picture_without_objects_beside_one_with(learner: Learner) -> None:
    losses, gradient = learner(learner.targets((8, 8, 40, 40)), learner.targets())
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
    assert all(np.isfinite(leaf).all() for leaf in gradient)


def test_a_batch_without_any_picture_teaches_nothing(learner: Learner) -> None:
    """Rows that only pad a batch are ignored, whatever their content."""
    for targets in (learner.targets(), learner.targets((8, 8, 40, 40)), learner.targets((8, 8, 40, 40), crowd=True)):
        losses, gradient = learner(targets, targets, valid=(False, False))
        assert set(losses.values()) == {0.0}
        assert not any(leaf.any() for leaf in gradient)
