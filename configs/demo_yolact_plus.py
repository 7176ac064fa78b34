"""A small YOLACT++ that learns synthetic shapes from random weights, in minutes on two CPU cores.

It is the model of demo_shapes.py with deformable convolutions in C3 to C5 and rescored masks.

The first start writes the dataset to data/shapes.

    python train.py --config configs/demo_yolact_plus.py
"""

from jaxseg.config import AugmentConfig, Config, override
from jaxseg.models import BackboneConfig, DeformableConfig, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "demo_yolact_plus",
            "model.num_classes": 4,
            "model.image_size": 128,
            "model.backbone": BackboneConfig(
                stage_sizes=(1, 1, 1, 1), width=16, deformable=DeformableConfig(every=(0, 1, 1, 1), bias=True)
            ),
            "model.fpn_channels": 64,
            "model.head_channels": 64,
            "model.prototype_channels": 64,
            "model.num_prototypes": 16,
            "model.anchor_scales": ((16, 24), (32, 48), (64, 90), (110, 120), (128, 140)),
            "model.square_anchors": False,
            "model.mask_iou_channels": (8, 16, 32),
            "model.losses.max_mask_positives": 32,
            "data.root": "data/shapes",
            "data.synthetic": True,
            "data.max_objects": 12,
            "data.workers": 1,
            # The held-out shapes come from the same distribution, so further augmentation would
            # only slow the training down.
            "data.augment": AugmentConfig(photometric=False, expand=False, crop=False),
            "train.batch_size": 8,
            "train.steps": 3000,
            "train.optimizer": "adamw",
            "train.learning_rate": 3e-3,
            "train.weight_decay": 1e-4,
            "train.schedule": "cosine",
            "train.warmup_steps": 200,
            "train.log_every": 50,
            "train.checkpoint_every": 1000,
            "train.evaluate_every": 3000,
        },
    )
