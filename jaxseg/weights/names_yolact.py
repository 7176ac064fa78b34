"""dbolya/yolact's names beside ours.

`{}` in a row stands for the same text on both sides; a row ends where a module's own parameters begin
(`weight`, `bias`, ... there; `kernel`, `scale`, ... here), which `jaxseg.weights.load` pairs.
"""

import re
from collections.abc import Iterator

from jaxseg.config import YolactConfig

# The prediction head's four convolutions; the pyramid's own lists run from P5 down to P3.
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
RESNET_BLOCK = {
    "conv1": "conv1",
    "bn1": "bn1",
    "conv2": "conv2",
    "bn2": "bn2",
    "conv3": "conv3",
    "bn3": "bn3",
    "shortcut": "downsample.0",
    "bn_shortcut": "downsample.1",
}

# In files but not in the model: counters of batch norm.
UNNEEDED = re.compile(r"\.num_batches_tracked$")
# In the model but not in files made for inference.
OPTIONAL = "semantic_head"


def modules(config: YolactConfig) -> Iterator[tuple[str, str]]:
    """Pairs of our module path and the original's, for every module that holds parameters."""
    yield from SHARED.items()
    sizes = config.backbone.stage_sizes
    if config.backbone.name == "resnet":
        yield "backbone/conv1", "backbone.conv1"
        yield "backbone/bn1", "backbone.bn1"
        for stage, blocks in enumerate(sizes):
            for block in range(blocks):
                for ours, theirs in RESNET_BLOCK.items():
                    if block == 0 or "shortcut" not in ours:
                        yield f"backbone/stage{stage + 1}_block{block}/{ours}", f"backbone.layers.{stage}.{block}.{theirs}"
    else:
        yield from _unit("stem", "_preconv")
        for stage, blocks in enumerate(sizes):
            yield from _unit(f"stage{stage + 1}_down", f"layers.{stage}.0")
            for block in range(blocks):
                for i in (1, 2):
                    yield from _unit(f"stage{stage + 1}_block{block}_conv{i}", f"layers.{stage}.{block + 1}.conv{i}")


def _unit(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"backbone/{ours}/conv", f"backbone.{theirs}.0"
    yield f"backbone/{ours}/bn", f"backbone.{theirs}.1"
