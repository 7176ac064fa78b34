"""A small RetinaNet that learns synthetic shapes from random weights, in minutes on two CPU cores.

The first start writes the dataset to data/shapes.

    python train.py --config configs/demo_retinanet.py
"""

from jaxseg.config import Config, load_config, override
from jaxseg.models import BackboneConfig, InputConfig, RetinaNetConfig


def get_config() -> Config:
    return override(
        load_config("configs/demo_mask_rcnn.py"),
        {
            "name": "demo_retinanet",
            "model": RetinaNetConfig(
                num_classes=4,
                input=InputConfig(shorter_side=(128,), longer_side=128),
                backbone=BackboneConfig(stage_sizes=(1, 1, 1, 1), width=16),
                fpn_channels=64,
                head_convolutions=2,
                anchor_sizes=tuple((size, 1.4 * size) for size in (16.0, 32.0, 64.0, 90.0, 128.0)),
                batch_norm="train",
            ),
            "model.conventions.cell_anchors": "exact",
        },
    )
