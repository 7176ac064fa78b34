"""Faster R-CNN with deformable convolutions in C3 to C5, as mmdetection 2.11 trains it.

mmdetection calls it faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco and publishes a box AP of 41.3 on COCO
val2017. The training takes 12 epochs in batches of 16 images, with torchvision's ResNet-50 as
init.weights.

    python train.py --config configs/faster_rcnn_r50_fpn_dconv_1x.py
"""

from jaxseg.config import Config, load_config, override


def get_config() -> Config:
    return override(
        load_config("configs/faster_rcnn_r50_fpn_1x.py"),
        {
            "name": "faster_rcnn_r50_fpn_dconv_1x",
            # Version 1 of deformable convolutions (arXiv:1703.06211).
            "model.backbone.deformable.every": (0, 1, 1, 1),
            "model.backbone.deformable.modulated": False,
        },
    )
