"""YOLACT with ResNet-50 at 550 px, for COCO's 80 classes.

The original publishes a mask mAP of 28.2 on COCO test-dev at 42.5 fps on a Titan Xp. The training
takes 800,000 steps of 8 images.

    python train.py --config configs/yolact_r50.py
"""

from jaxseg.config import Config, override
from jaxseg.models import RESNET50, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_r50",
            "model.backbone": RESNET50,
        },
    )
