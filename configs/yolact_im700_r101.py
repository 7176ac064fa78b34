"""YOLACT with ResNet-101 at 700 px, for COCO's 80 classes: slower and more accurate than at 550 px.

The original publishes a mask mAP of 31.2 on COCO test-dev at 23.6 fps on a Titan Xp. The training
takes 800,000 steps of 8 images.

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
            # As in the original, the scales 24 to 384 at 550 px are scaled to 700 px and truncated.
            "model.anchor_scales": ((30,), (61,), (122,), (244,), (488,)),
            "model.losses.max_mask_positives": 300,
        },
    )
