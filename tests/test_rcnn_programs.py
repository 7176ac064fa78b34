"""How many programs a run of Mask R-CNN compiles over real pictures of all shapes."""

from pathlib import Path

import numpy as np
import pytest
from compilation import compiled_programs

from jaxseg.config import load_config
from jaxseg.training import loop

# Small enough to compile within a minute.
TINY = {
    "model.backbone.stage_sizes": (1, 1, 1, 1),
    "model.backbone.width": 4,
    "model.fpn_channels": 8,
    "model.input.shorter_side": (64,),
    "model.input.longer_side": 96,
    "model.anchor_sizes": ((8,), (16,), (32,), (64,), (128,)),
    "model.rpn.pre_nms_train": 50,
    "model.rpn.pre_nms_test": 50,
    "model.rpn.post_nms_train": 50,
    "model.rpn.post_nms_test": 50,
    "model.roi.samples": 32,
    "model.roi.box_features": 16,
    "model.roi.mask_channels": 8,
    "model.roi.mask_convolutions": 1,
    "model.roi.mask_crop_size": 32,
    "data.max_objects": 40,
    "data.workers": 0,
    "train.batch_size": 4,
    "train.epochs": 1,
    "train.decay_epochs": (),
    "train.log_every": 1,
    "train.draw_images": 4,
    "eval.batch_size": 4,
}


@pytest.mark.slow
def test_an_epoch_of_all_pictures_compiles_two_programs_a_phase(coco_mini: Path, tmp_path):
    """Landscapes and portraits, with an evaluation halfway and one at the end."""
    config = load_config("configs/mask_rcnn_r50_fpn_1x.py", TINY | {"data.root": str(coco_mini), "train.evaluate_every": 10})
    with compiled_programs() as names:
        metrics = loop.train(config, tmp_path / "run")
    assert {name: names[name] for name in ("train_step", "loss_step", "detect")} == {"train_step": 2, "loss_step": 2, "detect": 2}
    assert {"loss/rpn_class", "loss/rpn_box", "loss/class", "loss/box", "loss/mask", "val/loss/mask", "val/mask/AP"} <= metrics.keys()
    assert all(np.isfinite(value) for name, value in metrics.items() if name.startswith("loss/"))
