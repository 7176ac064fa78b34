"""Caffe2's names, in MSRA's ResNet classifiers and in the detectors of Detectron.

Two of MSRA's files have the same name: Detectron's, whose batch norms are a scale and a bias, and
detectron2's, with running statistics. In both, the input of the stem is BGR in 0..255.
"""

import re
from collections.abc import Iterator

from jaxseg.models import MASKRCNN_BENCHMARK, BackboneModelConfig, RcnnConfig
from jaxseg.weights.names import resnet as names_resnet
from jaxseg.weights.names.layouts import BGR, Layout
from jaxseg.weights.names.rcnn import agreements, background_first
from jaxseg.weights.names.rules import NameTable

LEAVES = {
    ("params", "kernel"): "_w",
    ("params", "scale"): "_s",
    ("params", "bias"): "_b",
    ("batch_stats", "mean"): "_running_mean",
    ("batch_stats", "var"): "_running_var",
}
# The classifier, the biases of convolutions before a batch norm (which are zero), and the
# optimizer's momenta.
UNNEEDED = re.compile(r"^(fc1000|pred)_[wb]$|^(conv1|res\d_\d+_branch\d[abc]?)_b$|_momentum$")
RENAMED = ((re.compile(r"_bn_gamma$"), "_bn_s"), (re.compile(r"_bn_beta$"), "_bn_b"))

HEADS = {
    "rpn/conv": "conv_rpn{fpn2}",
    "rpn/objectness": "rpn_cls_logits{fpn2}",
    "rpn/box": "rpn_bbox_pred{fpn2}",
    "box_head/fc1": "fc6",
    "box_head/fc2": "fc7",
    "box_predictor/class": "cls_score",
    "box_predictor/box": "bbox_pred",
    "mask_head/deconv": "conv5_mask",
    "mask_head/output": "mask_fcn_logits",
}


def detector_modules(config: RcnnConfig) -> Iterator[tuple[str, str]]:
    """Yields pairs of our module path and Detectron's, for every module with parameters."""
    yield from names_resnet.CAFFE2.modules(config)
    for level, blocks in enumerate(config.backbone.stage_sizes, 2):
        # The output of a stage is named after its last block.
        output = f"res{level}_{blocks - 1}_sum"
        yield f"fpn/lateral{level}", f"fpn_inner_{output}{'' if level == 5 else '_lateral'}"
        yield f"fpn/output{level}", f"fpn_{output}"
    for ours, theirs in HEADS.items():
        # All levels share weights that are named after P2.
        yield ours, theirs.format(fpn2="_fpn2" if config.neck == "fpn" else "")
    for i in range(1, config.roi.mask_convolutions + 1):
        yield f"mask_head/conv{i}", f"_[mask]_fcn{i}"


STEM: dict[str, Layout] = {"backbone/conv1/kernel": BGR}
MSRA = NameTable(
    "a ResNet of MSRA",
    BackboneModelConfig,
    names_resnet.CAFFE2.modules,
    leaves=LEAVES,
    layouts=lambda config: STEM,
    part="backbone",
    folds_statistics=True,
    unneeded=UNNEEDED,
    renamed=RENAMED,
    agreements={"backbone.stride_in_1x1": True},
)
DETECTRON = NameTable(
    "a detector of Detectron",
    RcnnConfig,
    detector_modules,
    leaves=LEAVES,
    layouts=lambda config: background_first(config) | STEM,
    folds_statistics=True,
    unneeded=UNNEEDED,
    renamed=RENAMED,
    agreements=agreements(MASKRCNN_BENCHMARK, stride_in_1x1=True),
)
