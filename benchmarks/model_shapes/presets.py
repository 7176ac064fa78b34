"""The presets that the shapes come from."""

import functools

import jaxseg

# A preset with 2 x 2 samples per cell, not aligned, as in maskrcnn-benchmark and torchvision.
FIXED_SAMPLES = "mask_rcnn_r50_fpn_1x"
# A preset with as many samples as a cell has pixels, aligned, as in detectron2 and mmdetection.
ADAPTIVE_SAMPLES = "mask_rcnn_r50_fpn_3x_detectron2"
C4 = "mask_rcnn_r50_c4_1x"
DILATED_C5 = "mask_rcnn_r50_dc5_3x_detectron2"


@functools.cache
def preset(name: str) -> jaxseg.Config:
    """Loads the configuration `configs/<name>.py`."""
    return jaxseg.load_config(f"configs/{name}.py")
