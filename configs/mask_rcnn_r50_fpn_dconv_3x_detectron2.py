"""Mask R-CNN with deformable convolutions in C3 to C5, as detectron2 trains it on its 3x schedule.

detectron2 calls it Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5 and publishes a box AP of 42.7 and a mask
AP of 38.5 on COCO val2017. The training takes 270,000 steps of 16 images, with MSRA's R-50.pkl as
init.weights.

    python train.py --config configs/mask_rcnn_r50_fpn_dconv_3x_detectron2.py
"""

from jaxseg.config import Config, load_config, override


def get_config() -> Config:
    return override(
        load_config("configs/mask_rcnn_r50_fpn_3x_detectron2.py"),
        {
            "name": "mask_rcnn_r50_fpn_dconv_3x_detectron2",
            # Version 1 of deformable convolutions (arXiv:1703.06211).
            "model.backbone.deformable.every": (0, 1, 1, 1),
            "model.backbone.deformable.modulated": False,
        },
    )
