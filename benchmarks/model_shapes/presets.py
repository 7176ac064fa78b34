"""The presets that the shapes come from."""

import functools

import jaxseg

# 2 x 2 samples a cell, not aligned: maskrcnn-benchmark and torchvision.
FIXED_SAMPLES = "mask_rcnn_r50_fpn_1x"
# As many samples as a cell has pixels, aligned: detectron2 and mmdetection.
ADAPTIVE_SAMPLES = "mask_rcnn_r50_fpn_3x_detectron2"
C4 = "mask_rcnn_r50_c4_1x"
DILATED_C5 = "mask_rcnn_r50_dc5_3x_detectron2"


@functools.cache
def preset(name: str) -> jaxseg.Config:
    """The configuration `configs/<name>.py`."""
    return jaxseg.load_config(f"configs/{name}.py")
