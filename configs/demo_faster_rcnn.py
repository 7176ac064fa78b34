"""A small Faster R-CNN that learns synthetic shapes from nothing, in minutes on two CPU cores.

The dataset is written to data/shapes at the first start.

    python train.py --config configs/demo_faster_rcnn.py
"""

from jaxseg.config import Config, load_config, override
from jaxseg.models import MMDETECTION


def get_config() -> Config:
    return override(
        load_config("configs/demo_mask_rcnn.py"),
        {"name": "demo_faster_rcnn", "model.masks": False, "model.conventions": MMDETECTION, "model.conventions.roi_sampling_ratio": 2},
    )
