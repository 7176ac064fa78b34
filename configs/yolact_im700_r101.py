"""YOLACT with ResNet-101 at 700 px, 80 COCO classes: the precise one.

Published: mask mAP 31.2 on COCO test-dev, 23.6 fps on a Titan Xp.
Cost: 800,000 steps of 8 images.

    python train.py --config configs/yolact_im700_r101.py
"""

from jaxseg.config import Config, override
from jaxseg.models import YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_im700_r101",
            "model.image_size": 700,
            # 24 to 384 at 550 px, scaled to 700 and truncated, as the original does.
            "model.anchor_scales": ((30,), (61,), (122,), (244,), (488,)),
            "model.losses.max_mask_positives": 300,
        },
    )
