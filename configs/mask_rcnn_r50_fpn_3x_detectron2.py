"""Mask R-CNN with ResNet-50 and a feature pyramid, as detectron2 trains it on its 3x schedule.

detectron2 calls it COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x and publishes a box AP of 41.0
and a mask AP of 37.2 on COCO val2017. The training takes 270,000 steps of 16 images, with MSRA's
R-50.pkl as init.weights.

    python eval.py --config configs/mask_rcnn_r50_fpn_3x_detectron2.py --checkpoint model_final_f10217.pkl

    python train.py --config configs/mask_rcnn_r50_fpn_3x_detectron2.py
"""

from jaxseg.config import MIRROR_ONLY, RCNN_1X, Config, override
from jaxseg.models import DETECTRON2, RcnnConfig, RpnConfig


def get_config() -> Config:
    return override(
        Config(model=RcnnConfig(rpn=RpnConfig(), conventions=DETECTRON2)),
        {
            "name": "mask_rcnn_r50_fpn_3x_detectron2",
            "model.input.shorter_side": (640, 672, 704, 736, 768, 800),
            "model.backbone.pixel_mean": (123.675, 116.28, 103.53),
            "model.backbone.norm_epsilon": 1e-5,
            "data.augment": MIRROR_ONLY,
            "train": RCNN_1X,
            "train.steps": 270_000,
            "train.decay_steps": (210_000, 250_000),
            "train.warmup_steps": 1_000,
            "train.warmup_factor": 0.001,
            "train.bias_rate_factor": 1.0,
            "train.decay_biases": True,
            "train.decay_norms": False,
        },
    )
