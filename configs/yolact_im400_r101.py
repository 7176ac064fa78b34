"""YOLACT with ResNet-101 at 400 px, 80 COCO classes: the fast one.

Published: mask mAP 24.9 on COCO test-dev, 45.3 fps on a Titan Xp (paper, table 1).
Cost: 800,000 steps of 8 images.

    python train.py --config configs/yolact_im400_r101.py
"""

from jaxseg.config import Config, override
from jaxseg.models import YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_im400_r101",
            "model.image_size": 400,
            # 24 to 384 at 550 px, scaled to 400 and truncated, as the original does.
            "model.anchor_scales": ((17,), (34,), (69,), (139,), (279,)),
        },
    )
