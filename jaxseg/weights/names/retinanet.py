"""The names in maskrcnn-benchmark's RetinaNet."""

import re
from collections.abc import Iterator

from jaxseg.models import MASKRCNN_BENCHMARK as MASKRCNN_BENCHMARK_CONVENTIONS
from jaxseg.models import RetinaNetConfig
from jaxseg.weights.names.rcnn import PARALLEL, agreements, maskrcnn_benchmark_pyramid, stem
from jaxseg.weights.names.rules import NameTable

HEADS = {
    "fpn/downsample6": "backbone.fpn.top_blocks.p6",
    "fpn/downsample7": "backbone.fpn.top_blocks.p7",
    "head/class": "rpn.head.cls_logits",
    "head/box": "rpn.head.bbox_pred",
}


def modules(config: RetinaNetConfig) -> Iterator[tuple[str, str]]:
    """Yields pairs of our module path and the original's, for every module with parameters."""
    yield from maskrcnn_benchmark_pyramid(config)
    for i in range(config.head_convolutions):
        # In the original, a ReLU follows each convolution in the list, so the index counts by two.
        yield f"head/class_conv{i + 1}", f"rpn.head.cls_tower.{2 * i}"
        yield f"head/box_conv{i + 1}", f"rpn.head.bbox_tower.{2 * i}"
    yield from HEADS.items()


MASKRCNN_BENCHMARK = NameTable(
    "a detector of maskrcnn-benchmark",
    RetinaNetConfig,
    modules,
    layouts=stem,
    unneeded=re.compile(r"^rpn\.anchor_generator\."),
    renamed=(PARALLEL,),
    agreements=agreements(MASKRCNN_BENCHMARK_CONVENTIONS, stride_in_1x1=True),
)
