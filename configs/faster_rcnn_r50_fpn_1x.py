"""Faster R-CNN with ResNet-50 and a feature pyramid, as mmdetection 2.11 trains it.

mmdetection calls it faster_rcnn_r50_fpn_1x_coco and publishes a box AP of 37.4 on COCO val2017. The
training takes 12 epochs in batches of 16 images, with torchvision's ResNet-50 as init.weights.

    python train.py --config configs/faster_rcnn_r50_fpn_1x.py
"""

from jaxseg.config import MIRROR_ONLY, RCNN_1X, Config, override
from jaxseg.models import IMAGENET_RESNET50, MMDETECTION, RcnnConfig, RpnConfig


def get_config() -> Config:
    return override(
        Config(
            model=RcnnConfig(
                masks=False,
                backbone=IMAGENET_RESNET50,
                # The scales and biases of batch norm learn; its statistics do not.
                batch_norm="eval",
                rpn=RpnConfig(),
                conventions=MMDETECTION,
            )
        ),
        {
            "name": "faster_rcnn_r50_fpn_1x",
            "data.augment": MIRROR_ONLY,
            "train": RCNN_1X,
            "train.epochs": 12,
            "train.decay_epochs": (8, 11),
            "train.warmup_factor": 0.001,
            "train.bias_rate_factor": 1.0,
            "train.decay_biases": True,
        },
    )
