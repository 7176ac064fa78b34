"""A small Faster R-CNN that learns synthetic shapes from random weights, in minutes on two cores.

The first start writes the dataset to data/shapes.

    python train.py --config configs/demo_faster_rcnn.py
"""

from jaxseg.config import Config, load_config, override
from jaxseg.models import MMDETECTION


def get_config() -> Config:
    return override(
        load_config("configs/demo_mask_rcnn.py"),
        {"name": "demo_faster_rcnn", "model.masks": False, "model.conventions": MMDETECTION, "model.conventions.roi_sampling_ratio": 2},
    )
