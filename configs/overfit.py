"""A small YOLACT that learns 8 real images by heart, which quickly tests that all parts fit.

It trains without augmentation on the first 8 images of COCO's training set, or of any dataset in
COCO's layout, and is evaluated on the same 8 images.

    python train.py --config configs/overfit.py
"""

from jaxseg.config import AugmentConfig, Config, override
from jaxseg.models import BackboneConfig, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "overfit",
            "model.image_size": 256,
            "model.backbone": BackboneConfig(stage_sizes=(1, 1, 2, 1), width=32),
            "model.fpn_channels": 128,
            "model.head_channels": 128,
            "model.prototype_channels": 64,
            "model.anchor_scales": ((10,), (22,), (48,), (96,), (192,)),
            "model.square_anchors": False,
            "data.val_annotations": "annotations/instances_train2017.json",
            "data.val_images": "train2017",
            "data.limit_images": 8,
            "data.workers": 1,
            "data.augment": AugmentConfig(photometric=False, expand=False, crop=False, mirror=False),
            "model.losses.max_mask_positives": 60,
            "train.batch_size": 8,
            "train.steps": 800,
            "train.optimizer": "adamw",
            "train.learning_rate": 1e-3,
            "train.weight_decay": 1e-4,
            "train.schedule": "cosine",
            "train.warmup_steps": 50,
            "train.checkpoint_every": 400,
            "train.evaluate_every": 400,
        },
    )
