"""The number of programs that a run of Mask R-CNN compiles for real pictures of all shapes."""

from pathlib import Path

import numpy as np
import pytest
from compilation import compiled_programs
from tiny_rcnn import TINY

from jaxseg.config import load_config
from jaxseg.training import loop


@pytest.mark.slow
def test_an_epoch_of_all_pictures_compiles_two_programs_a_phase(coco_mini: Path, tmp_path):
    """There are landscapes and portraits, an evaluation half-way and another one at the end."""
    config = load_config("configs/mask_rcnn_r50_fpn_1x.py", TINY | {"data.root": str(coco_mini), "train.evaluate_every": 10})
    with compiled_programs() as names:
        metrics = loop.train(config, tmp_path / "run")
    assert {name: names[name] for name in ("train_step", "loss_step", "detect")} == {"train_step": 2, "loss_step": 2, "detect": 2}
    assert {"loss/rpn_class", "loss/rpn_box", "loss/class", "loss/box", "loss/mask", "val/loss/mask", "val/mask/AP"} <= metrics.keys()
    assert all(np.isfinite(value) for name, value in metrics.items() if name.startswith("loss/"))
