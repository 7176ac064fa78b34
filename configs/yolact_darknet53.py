"""YOLACT with Darknet-53 at 550 px, for COCO's 80 classes.

The original publishes a mask mAP of 28.7 on COCO test-dev at 40.0 fps on a Titan Xp. The training
takes 800,000 steps of 8 images.

    python train.py --config configs/yolact_darknet53.py
"""

from jaxseg.config import Config, override
from jaxseg.models import DARKNET53, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_darknet53",
            "model.backbone": DARKNET53,
        },
    )
