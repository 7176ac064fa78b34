"""YOLACT with ResNet-50 at 550 px, for the 20 classes of Pascal VOC.

It expects the masks of SBD in COCO's JSON format. The original publishes a mask AP50 of 72.3 and a
mask AP70 of 56.2 on SBD val. The training takes 120,000 steps of 8 images.

    python train.py --config configs/yolact_r50_pascal.py
"""

from jaxseg.classes import PASCAL_CATEGORY_IDS, PASCAL_CLASS_NAMES
from jaxseg.config import Config, override
from jaxseg.models import RESNET50, YolactConfig


def get_config() -> Config:
    return override(
        Config(model=YolactConfig()),
        {
            "name": "yolact_r50_pascal",
            "model.backbone": RESNET50,
            "model.num_classes": 20,
            "model.anchor_scales": ((32,), (64,), (128,), (256,), (512,)),
            "model.square_anchors": False,
            "data.class_names": PASCAL_CLASS_NAMES,
            "data.category_ids": PASCAL_CATEGORY_IDS,
            "data.train_annotations": "annotations/pascal_train.json",
            "data.train_images": "images",
            "data.val_annotations": "annotations/pascal_val.json",
            "data.val_images": "images",
            "train.steps": 120_000,
            "train.decay_steps": (60_000, 100_000),
        },
    )
