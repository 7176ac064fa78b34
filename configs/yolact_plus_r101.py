"""YOLACT++ with ResNet-101 at 550 px, for COCO's 80 classes (arXiv:1912.06218).

Beside YOLACT, it has deformable convolutions in C3 to C5, three scales of anchors on each level,
and a network that rescores masks. The original publishes a mask mAP of 34.6 on COCO test-dev at
27.3 fps on a Titan Xp. The training takes 800,000 steps of 8 images.

    python train.py --config configs/yolact_plus_r101.py
"""

import dataclasses

from jaxseg.config import Config, override
from jaxseg.models import RESNET101, DeformableConfig, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_plus_r101",
            "model.backbone": dataclasses.replace(RESNET101, deformable=DeformableConfig(every=(0, 3, 3, 3), bias=True)),
            "model.anchor_scales": tuple(tuple(scale * 2 ** (i / 3) for i in range(3)) for scale in (24, 48, 96, 192, 384)),
            "model.square_anchors": False,
            "model.mask_iou_channels": (8, 16, 32, 64, 128),
        },
    )
