"""YOLACT with ResNet-101 at 400 px, for COCO's 80 classes: faster and less accurate than at 550 px.

The original's paper (table 1) publishes a mask mAP of 24.9 on COCO test-dev at 45.3 fps on a Titan
Xp. The training takes 800,000 steps of 8 images.

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
            # As in the original, the scales 24 to 384 at 550 px are scaled to 400 px and truncated.
            "model.anchor_scales": ((17,), (34,), (69,), (139,), (279,)),
        },
    )
