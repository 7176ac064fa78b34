"""dbolya/yolact's names, in its detectors and in the ImageNet file of its Darknet-53.

The tables pair names of modules. `jaxseg.weights.names.rules` pairs the names of their parameters:
`weight`, `bias` and so on there; `kernel`, `scale` and so on here.
"""

import re
from collections.abc import Iterator

from jaxseg.models import BackboneModelConfig, YolactConfig
from jaxseg.weights.names import resnet as names_resnet
from jaxseg.weights.names.rules import NameTable

# The lists of the original's pyramid run from P5 down to P3.
SHARED = {
    "head/trunk": "prediction_layers.0.upfeature.0",
    "head/box": "prediction_layers.0.bbox_layer",
    "head/class": "prediction_layers.0.conf_layer",
    "head/mask": "prediction_layers.0.mask_layer",
    "prototypes/conv1": "proto_net.0",
    "prototypes/conv2": "proto_net.2",
    "prototypes/conv3": "proto_net.4",
    "prototypes/conv4": "proto_net.8",
    "prototypes/output": "proto_net.10",
    "semantic_head": "semantic_seg_conv",
    "fpn/lateral5": "fpn.lat_layers.0",
    "fpn/lateral4": "fpn.lat_layers.1",
    "fpn/lateral3": "fpn.lat_layers.2",
    "fpn/output5": "fpn.pred_layers.0",
    "fpn/output4": "fpn.pred_layers.1",
    "fpn/output3": "fpn.pred_layers.2",
    "fpn/downsample6": "fpn.downsample_layers.0",
    "fpn/downsample7": "fpn.downsample_layers.1",
}
# The network that estimates the masks' IoU, whose entries with a ReLU have odd numbers.
MASK_IOU = "maskiou_net.maskiou_net.{}"
DARKNET_UNIT = {"conv": "0", "bn": "1"}

# Entries that the original's loader drops or that have no effect.
UNNEEDED = {
    "counters of batch norm": r"\.num_batches_tracked$",
    "the backbone's second copy, until October 2018": r"^backbone\.layer\d",
    "levels above P7, of version 1.0": r"^fpn\.downsample_layers\.([2-9]|\d\d+)\.",
}
# Names in early files.
RENAMED = {
    "the head's convolution, before it could have several": (r"^(prediction_layers\.0\.upfeature)\.(weight|bias)$", r"\1.0.\2"),
}


def modules(config: YolactConfig) -> Iterator[tuple[str, str]]:
    """Yields pairs of our module path and the original's, for every module with parameters."""
    yield from SHARED.items()
    for i in range(len(config.mask_iou_channels)):
        yield f"mask_iou/conv{i + 1}", MASK_IOU.format(2 * i)
    yield "mask_iou/output", MASK_IOU.format(2 * len(config.mask_iou_channels))
    yield from names_resnet.YOLACT.modules(config, "backbone.")
    for ours, theirs in darknet_modules(config):
        yield ours, f"backbone.{theirs}"


def darknet_modules(config: BackboneModelConfig) -> Iterator[tuple[str, str]]:
    """Yields the same pairs for a Darknet alone, as in `darknet53.pth`."""
    if config.backbone.name != "darknet":
        return
    units = {"stem": "_preconv"}
    for stage, blocks in enumerate(config.backbone.stage_sizes):
        units[f"stage{stage + 1}_down"] = f"layers.{stage}.0"
        for block in range(blocks):
            for i in (1, 2):
                units[f"stage{stage + 1}_block{block}_conv{i}"] = f"layers.{stage}.{block + 1}.conv{i}"
    for unit, their_unit in units.items():
        for ours, theirs in DARKNET_UNIT.items():
            yield f"backbone/{unit}/{ours}", f"{their_unit}.{theirs}"


DETECTOR = NameTable(
    "a detector of dbolya/yolact",
    YolactConfig,
    modules,
    # Files that were made for inference do not have it.
    optional=("semantic_head",),
    unneeded=re.compile("|".join(UNNEEDED.values())),
    renamed=tuple((re.compile(old), new) for old, new in RENAMED.values()),
    counts_batches=True,
)
DARKNET53 = NameTable(
    "a Darknet-53 of dbolya/yolact",
    BackboneModelConfig,
    darknet_modules,
    part="backbone",
    unneeded=re.compile(UNNEEDED["counters of batch norm"]),
)
