"""Mask R-CNN that pools regions from C4 and has C5 as its head, as maskrcnn-benchmark trains it.

maskrcnn-benchmark calls it e2e_mask_rcnn_R_50_C4_1x and publishes a box AP of 35.6 and a mask AP of
31.5 on COCO minival. The training takes 180,000 steps of 8 images, with MSRA's R-50.pkl as
init.weights.

    python train.py --config configs/mask_rcnn_r50_c4_1x.py
"""

from jaxseg.config import MIRROR_ONLY, RCNN_1X, Config, override
from jaxseg.models import RcnnConfig, RoiConfig, RpnConfig


def get_config() -> Config:
    return override(
        Config(
            model=RcnnConfig(
                neck="c4",
                anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
                rpn=RpnConfig(pre_nms_train=12_000, pre_nms_test=6_000, post_nms_train=2_000),
                roi=RoiConfig(mask_convolutions=0),
            )
        ),
        {
            "name": "mask_rcnn_r50_c4_1x",
            # Without a pyramid, each image has its own quota of proposals, and each bin of RoIAlign
            # takes as many samples as it has cells.
            "model.conventions.proposal_group": 1,
            "model.conventions.roi_sampling_ratio": 0,
            "data.augment": MIRROR_ONLY,
            "train": RCNN_1X,
            "train.batch_size": 8,
            "train.autoscale_batch_size": 8,
            "train.learning_rate": 0.01,
            "train.steps": 180_000,
            "train.decay_steps": (120_000, 160_000),
        },
    )
