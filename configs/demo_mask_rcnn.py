"""A small Mask R-CNN that learns synthetic shapes from random weights, in minutes on two CPU cores.

The first start writes the dataset to data/shapes.

    python train.py --config configs/demo_mask_rcnn.py
"""

from jaxseg.config import MIRROR_ONLY, Config, override
from jaxseg.models import DETECTRON2, BackboneConfig, InputConfig, RcnnConfig, RoiConfig, RpnConfig


def get_config() -> Config:
    return override(
        Config(
            model=RcnnConfig(
                num_classes=4,
                input=InputConfig(shorter_side=(128,), longer_side=128),
                backbone=BackboneConfig(stage_sizes=(1, 1, 1, 1), width=16),
                fpn_channels=64,
                anchor_sizes=((16.0,), (32.0,), (64.0,), (96.0,), (128.0,)),
                batch_norm="train",
                rpn=RpnConfig(samples=128, pre_nms_train=256, pre_nms_test=256, post_nms_train=128, post_nms_test=128),
                roi=RoiConfig(samples=64, box_features=128, mask_channels=32, mask_convolutions=2, mask_crop_size=56),
                conventions=DETECTRON2,
            )
        ),
        {
            "name": "demo_mask_rcnn",
            "model.conventions.roi_sampling_ratio": 2,
            "data.root": "data/shapes",
            "data.synthetic": True,
            "data.class_names": (),
            "data.category_ids": (),
            "data.max_objects": 12,
            "data.workers": 1,
            "data.augment": MIRROR_ONLY,
            "train.batch_size": 8,
            "train.steps": 2000,
            "train.optimizer": "adamw",
            "train.learning_rate": 2e-3,
            "train.weight_decay": 1e-4,
            "train.schedule": "cosine",
            "train.warmup_steps": 200,
            "train.log_every": 50,
            "train.checkpoint_every": 1000,
            "train.evaluate_every": 2000,
        },
    )
