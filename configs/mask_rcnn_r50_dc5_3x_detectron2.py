"""Mask R-CNN on a dilated C5 without a pyramid, as detectron2 trains it on its 3x schedule.

detectron2 calls it COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x and publishes a box AP of 40.0
and a mask AP of 35.9 on COCO val2017. The training takes 270,000 steps of 16 images, with MSRA's
R-50.pkl as init.weights.

    python eval.py --config configs/mask_rcnn_r50_dc5_3x_detectron2.py --checkpoint model_final_84107b.pkl

    python train.py --config configs/mask_rcnn_r50_dc5_3x_detectron2.py
"""

from jaxseg.config import Config, load_config, override


def get_config() -> Config:
    return override(
        load_config("configs/mask_rcnn_r50_fpn_3x_detectron2.py"),
        {
            "name": "mask_rcnn_r50_dc5_3x_detectron2",
            "model.neck": "dilated_c5",
            "model.anchor_sizes": ((32.0, 64.0, 128.0, 256.0, 512.0),),
            "model.rpn.pre_nms_train": 12_000,
            "model.rpn.pre_nms_test": 6_000,
            "model.rpn.post_nms_train": 2_000,
        },
    )
