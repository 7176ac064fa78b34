"""Faster R-CNN with ResNet-101 and a feature pyramid, as mmdetection 2.11 trains it.

mmdetection calls it faster_rcnn_r101_fpn_1x_coco and publishes a box AP of 39.4 on COCO val2017.
The training takes 12 epochs in batches of 16 images, with torchvision's ResNet-101 as init.weights.

    python train.py --config configs/faster_rcnn_r101_fpn_1x.py
"""

from jaxseg.config import Config, load_config, override


def get_config() -> Config:
    return override(
        load_config("configs/faster_rcnn_r50_fpn_1x.py"),
        {
            "name": "faster_rcnn_r101_fpn_1x",
            "model.backbone.stage_sizes": (3, 4, 23, 3),
        },
    )
