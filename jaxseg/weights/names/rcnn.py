"""Names and layouts of the R-CNNs of torchvision, detectron2, mmdetection and maskrcnn-benchmark.

A table may name modules that a model does not have, such as the mask head of a Faster R-CNN.
"""

import re
from collections.abc import Iterator

from jaxseg.models import DETECTRON2 as DETECTRON2_CONVENTIONS
from jaxseg.models import MASKRCNN_BENCHMARK as MASKRCNN_BENCHMARK_CONVENTIONS
from jaxseg.models import MMDETECTION as MMDETECTION_CONVENTIONS
from jaxseg.models import TORCHVISION as TORCHVISION_CONVENTIONS
from jaxseg.models import Conventions, RcnnConfig
from jaxseg.models.anchored.config import AnchoredConfig
from jaxseg.weights.names import resnet as names_resnet
from jaxseg.weights.names.layouts import BACKGROUND_FIRST, BGR, Layout, anchors_by_size, flattened, without_background
from jaxseg.weights.names.rules import NameTable

# The conventions without which a detector's weights do not work.
ESSENTIAL = ("resize", "pixel_offset", "cell_anchors", "anchor_strides", "roi_aligned")
# The prefix that PyTorch's data-parallel training adds to names.
PARALLEL = (re.compile(r"^module\."), "")
PYRAMID = range(2, 6)

TORCHVISION_HEADS = {
    "rpn/conv": "rpn.head.conv.0.0",
    "rpn/objectness": "rpn.head.cls_logits",
    "rpn/box": "rpn.head.bbox_pred",
    "box_head/fc1": "roi_heads.box_head.fc6",
    "box_head/fc2": "roi_heads.box_head.fc7",
    "box_predictor/class": "roi_heads.box_predictor.cls_score",
    "box_predictor/box": "roi_heads.box_predictor.bbox_pred",
    "mask_head/deconv": "roi_heads.mask_predictor.conv5_mask",
    "mask_head/output": "roi_heads.mask_predictor.mask_fcn_logits",
}
# Published files are older than the `Conv2dNormActivation` that now contains some convolutions.
TORCHVISION_RENAMED = (
    PARALLEL,
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (
        re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$"),
        lambda found: f"roi_heads.mask_head.{int(found[1]) - 1}.0.{found[2]}",
    ),
)
DETECTRON2_HEADS = {
    "rpn/conv": "proposal_generator.rpn_head.conv",
    "rpn/objectness": "proposal_generator.rpn_head.objectness_logits",
    "rpn/box": "proposal_generator.rpn_head.anchor_deltas",
    "box_head/fc1": "roi_heads.box_head.fc1",
    "box_head/fc2": "roi_heads.box_head.fc2",
    "box_predictor/class": "roi_heads.box_predictor.cls_score",
    "box_predictor/box": "roi_heads.box_predictor.bbox_pred",
    "mask_head/deconv": "roi_heads.mask_head.deconv",
    "mask_head/output": "roi_heads.mask_head.predictor",
}
MMDETECTION_HEADS = {
    "rpn/conv": "rpn_head.rpn_conv",
    "rpn/objectness": "rpn_head.rpn_cls",
    "rpn/box": "rpn_head.rpn_reg",
    "box_head/fc1": "roi_head.bbox_head.shared_fcs.0",
    "box_head/fc2": "roi_head.bbox_head.shared_fcs.1",
    "box_predictor/class": "roi_head.bbox_head.fc_cls",
    "box_predictor/box": "roi_head.bbox_head.fc_reg",
    "mask_head/deconv": "roi_head.mask_head.upsample",
    "mask_head/output": "roi_head.mask_head.conv_logits",
}
MASKRCNN_BENCHMARK_HEADS = {
    "rpn/conv": "rpn.head.conv",
    "rpn/objectness": "rpn.head.cls_logits",
    "rpn/box": "rpn.head.bbox_pred",
    "box_head/fc1": "roi_heads.box.feature_extractor.fc6",
    "box_head/fc2": "roi_heads.box.feature_extractor.fc7",
    "box_predictor/class": "roi_heads.box.predictor.cls_score",
    "box_predictor/box": "roi_heads.box.predictor.bbox_pred",
    "mask_head/deconv": "roi_heads.mask.predictor.conv5_mask",
    "mask_head/output": "roi_heads.mask.predictor.mask_fcn_logits",
}
MASKRCNN_BENCHMARK_UNNEEDED = {
    "anchors": r"^rpn\.anchor_generator\.",
    "C4's head, which the masks share with the boxes, a second time": r"^roi_heads\.mask\.feature_extractor\.head\.",
}


def torchvision(config: RcnnConfig) -> Iterator[tuple[str, str]]:
    """Yields pairs of our module path and torchvision's, for every module with parameters."""
    yield from names_resnet.TORCHVISION.modules(config, "backbone.body.")
    for level in PYRAMID:
        yield f"fpn/lateral{level}", f"backbone.fpn.inner_blocks.{level - 2}.0"
        yield f"fpn/output{level}", f"backbone.fpn.layer_blocks.{level - 2}.0"
    for i in range(config.roi.mask_convolutions):
        yield f"mask_head/conv{i + 1}", f"roi_heads.mask_head.{i}.0"
    yield from TORCHVISION_HEADS.items()


def detectron2(config: RcnnConfig) -> Iterator[tuple[str, str]]:
    """Yields the same pairs for detectron2."""
    body = "backbone.bottom_up." if config.neck == "fpn" else "backbone."
    yield from names_resnet.DETECTRON2.modules(config, body, "roi_heads.")
    for level in PYRAMID:
        yield f"fpn/lateral{level}", f"backbone.fpn_lateral{level}"
        yield f"fpn/output{level}", f"backbone.fpn_output{level}"
    for i in range(1, config.roi.mask_convolutions + 1):
        yield f"mask_head/conv{i}", f"roi_heads.mask_head.mask_fcn{i}"
    yield from DETECTRON2_HEADS.items()


def mmdetection(config: RcnnConfig) -> Iterator[tuple[str, str]]:
    """Yields the same pairs for mmdetection 2."""
    yield from names_resnet.MMDETECTION.modules(config, "backbone.", "roi_head.shared_head.")
    for level in PYRAMID:
        yield f"fpn/lateral{level}", f"neck.lateral_convs.{level - 2}.conv"
        yield f"fpn/output{level}", f"neck.fpn_convs.{level - 2}.conv"
    for i in range(config.roi.mask_convolutions):
        yield f"mask_head/conv{i + 1}", f"roi_head.mask_head.convs.{i}.conv"
    yield from MMDETECTION_HEADS.items()


def maskrcnn_benchmark(config: RcnnConfig) -> Iterator[tuple[str, str]]:
    """Yields the same pairs for maskrcnn-benchmark."""
    yield from maskrcnn_benchmark_pyramid(config)
    for i in range(1, config.roi.mask_convolutions + 1):
        yield f"mask_head/conv{i}", f"roi_heads.mask.feature_extractor.mask_fcn{i}"
    yield from MASKRCNN_BENCHMARK_HEADS.items()


def maskrcnn_benchmark_pyramid(config: AnchoredConfig) -> Iterator[tuple[str, str]]:
    """Yields the pairs of the backbone and feature pyramid of maskrcnn-benchmark's detectors."""
    yield from names_resnet.MASKRCNN_BENCHMARK.modules(config, "backbone.body.", "roi_heads.box.feature_extractor.head.")
    for level in PYRAMID:
        yield f"fpn/lateral{level}", f"backbone.fpn.fpn_inner{level - 1}"
        yield f"fpn/output{level}", f"backbone.fpn.fpn_layer{level - 1}"


def background_first(config: RcnnConfig) -> dict[str, Layout]:
    """Returns the layouts of detectors whose first class is the background."""
    return _flat_regions(config) | {
        "box_predictor/class": BACKGROUND_FIRST,
        "box_predictor/box": without_background(4),
        "mask_head/output": without_background(1),
    }


def _flat_regions(config: RcnnConfig) -> dict[str, Layout]:
    return {"box_head/fc1/kernel": flattened(config.roi.box_size)}


def stem(config: AnchoredConfig) -> dict[str, Layout]:
    """Returns the layout of the stem, whose input is BGR in weights that started from MSRA's.

    Those weights also have the strides of blocks on the first 1x1 convolution, which tells them
    from weights that started from torchvision's.
    """
    return {"backbone/conv1/kernel": BGR} if config.backbone.stride_in_1x1 else {}


def _anchors_by_size(config: RcnnConfig) -> dict[str, Layout]:
    layout = anchors_by_size(len(config.anchor_sizes[0]), len(config.anchor_aspect_ratios))
    return {"rpn/objectness": layout, "rpn/box": layout}


def agreements(conventions: Conventions, *, stride_in_1x1: bool | None = None) -> dict[str, object]:
    """Returns the values that a configuration must have for weights with these conventions.

    Args:
        conventions: the conventions that the weights were trained with.
        stride_in_1x1: whether the strides of the ResNet's blocks are on the first 1x1 convolution;
            None if the project has both kinds.
    """
    required: dict[str, object] = {f"conventions.{name}": getattr(conventions, name) for name in ESSENTIAL}
    return required if stride_in_1x1 is None else required | {"backbone.stride_in_1x1": stride_in_1x1}


TORCHVISION = NameTable(
    "a detector of torchvision",
    RcnnConfig,
    torchvision,
    layouts=background_first,
    unneeded=re.compile(r"\.num_batches_tracked$"),
    renamed=TORCHVISION_RENAMED,
    agreements=agreements(TORCHVISION_CONVENTIONS, stride_in_1x1=False),
)
DETECTRON2 = NameTable(
    "a detector of detectron2",
    RcnnConfig,
    detectron2,
    layouts=lambda config: _flat_regions(config) | stem(config) | _anchors_by_size(config),
    folds_statistics=True,
    unneeded=re.compile(r"^pixel_(mean|std)$|\.anchor_generator\.|\.num_batches_tracked$"),
    renamed=(PARALLEL,),
    agreements=agreements(DETECTRON2_CONVENTIONS),
)
MMDETECTION = NameTable(
    "a detector of mmdetection",
    RcnnConfig,
    mmdetection,
    layouts=lambda config: _flat_regions(config) | stem(config),
    unneeded=re.compile(r"\.num_batches_tracked$"),
    renamed=(PARALLEL,),
    agreements=agreements(MMDETECTION_CONVENTIONS),
    counts_batches=True,
)
MASKRCNN_BENCHMARK = NameTable(
    "a detector of maskrcnn-benchmark",
    RcnnConfig,
    maskrcnn_benchmark,
    layouts=lambda config: background_first(config) | stem(config),
    unneeded=re.compile("|".join(MASKRCNN_BENCHMARK_UNNEEDED.values())),
    renamed=(PARALLEL,),
    agreements=agreements(MASKRCNN_BENCHMARK_CONVENTIONS, stride_in_1x1=True),
)
