"""YOLACT-base, with ResNet-101 at 550 px, for COCO's 80 classes.

The original publishes a mask mAP of 29.8 on COCO test-dev (29.9 on val2017) at 33.5 fps on a Titan
Xp. The training takes 800,000 steps of 8 images, which are 4 to 5 days on the authors' Titan Xp.

    python train.py --config configs/yolact_r101.py
"""

from jaxseg.config import Config
from jaxseg.models import YolactConfig


def get_config() -> Config:
    return Config(name="yolact_r101", model=YolactConfig())
