"""Mask R-CNN with ResNet-50 and a feature pyramid, as maskrcnn-benchmark trains it.

maskrcnn-benchmark calls it e2e_mask_rcnn_R_50_FPN_1x and publishes a box AP of 37.8 and a mask AP
of 34.2 on COCO minival. The training takes 90,000 steps of 16 images, with MSRA's R-50.pkl as
init.weights.

    python train.py --config configs/mask_rcnn_r50_fpn_1x.py
"""

from jaxseg.config import MIRROR_ONLY, RCNN_1X, Config, override
from jaxseg.models import RcnnConfig


def get_config() -> Config:
    return override(
        Config(model=RcnnConfig()),
        {
            "name": "mask_rcnn_r50_fpn_1x",
            "data.augment": MIRROR_ONLY,
            "train": RCNN_1X,
        },
    )
