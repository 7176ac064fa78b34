"""Mask R-CNN with ResNet-50 and a feature pyramid, as maskrcnn-benchmark trains it (e2e_mask_rcnn_R_50_FPN_1x).

Published there: box AP 37.8, mask AP 34.2 on COCO minival.
Cost: 90,000 steps of 16 images, from MSRA's R-50.pkl as init.weights.

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
