"""Mask R-CNN on a dilated C5, without a pyramid, as detectron2 trains it for 3x (COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x).

Published there: box AP 40.0, mask AP 35.9 on COCO val2017.
Cost: 270,000 steps of 16 images, from MSRA's R-50.pkl as init.weights.

    python eval.py --config configs/mask_rcnn_r50_dc5_3x_detectron2.py --checkpoint model_final_84107b.pkl

    python train.py --config configs/mask_rcnn_r50_dc5_3x_detectron2.py
"""

from jaxseg.config import DETECTRON2, MIRROR_ONLY, RCNN_1X, Config, RcnnConfig, RpnConfig, override


def get_config() -> Config:
    return override(
        Config(),
        {
            "name": "mask_rcnn_r50_dc5_3x_detectron2",
            "model": RcnnConfig(
                neck="dilated_c5",
                anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
                rpn=RpnConfig(pre_nms_train=12_000, pre_nms_test=6_000, post_nms_train=2_000),
                conventions=DETECTRON2,
            ),
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
