"""Mask R-CNN with torchvision's conventions, for the weights of maskrcnn_resnet50_fpn (COCO_V1).

torchvision publishes a box AP of 37.9 and a mask AP of 34.6 on COCO val2017. The training takes 26
epochs in batches of 16 images, with torchvision's ResNet-50 as init.weights.

    python eval.py --config configs/mask_rcnn_r50_fpn_torchvision.py --checkpoint maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth

    python train.py --config configs/mask_rcnn_r50_fpn_torchvision.py
"""

from jaxseg.classes import ALL_COCO_CATEGORY_IDS, ALL_COCO_CLASS_NAMES
from jaxseg.config import MIRROR_ONLY, RCNN_1X, Config, override
from jaxseg.models import IMAGENET_RESNET50, TORCHVISION, RcnnConfig, RpnConfig


def get_config() -> Config:
    return override(
        Config(
            model=RcnnConfig(
                # There is a class for each of COCO's ids from 1 to 90; ten have no category.
                num_classes=90,
                backbone=IMAGENET_RESNET50,
                rpn=RpnConfig(post_nms_train=2_000),
                conventions=TORCHVISION,
            )
        ),
        {
            "name": "mask_rcnn_r50_fpn_torchvision",
            # The published weights belong to a batch norm without epsilon.
            "model.backbone.norm_epsilon": 0.0,
            "data.class_names": ALL_COCO_CLASS_NAMES,
            "data.category_ids": ALL_COCO_CATEGORY_IDS,
            "data.augment": MIRROR_ONLY,
            "train": RCNN_1X,
            "train.epochs": 26,
            "train.decay_epochs": (16, 22),
            "train.warmup_steps": 1_000,
            "train.warmup_factor": 0.001,
            "train.bias_rate_factor": 1.0,
            "train.decay_biases": True,
        },
    )
