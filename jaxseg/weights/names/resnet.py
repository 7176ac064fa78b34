"""The names of a ResNet's modules in each project."""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from jaxseg.models import BackboneModelConfig

# A classifier has ordinary convolutions, without a bias, where a detector has deformable ones.
DEFORMABLE_BIAS = re.compile(r"/conv2/bias$")

_PROJECTION = {"shortcut": "downsample.0", "bn_shortcut": "downsample.1"}


@dataclasses.dataclass(frozen=True)
class ResNetNames:
    """One project's names of a ResNet's modules.

    Attributes:
        stem: their names of the stem's modules, by ours.
        stage: a pattern of the name of a module in a block, with the fields `stage`, `block` and
            `module`.
        first: their number of the stage that ends in C2.
        block: their names of a block's modules, by ours.
        deformable: the names that differ or are added in a block with a deformable convolution.
    """

    stem: Mapping[str, str]
    stage: str
    first: int
    block: dict[str, str]
    deformable: dict[str, str] = dataclasses.field(default_factory=dict)

    def modules(self, config: BackboneModelConfig, body: str = "", head: str = "") -> Iterator[tuple[str, str]]:
        """Yields pairs of our module path and theirs.

        Args:
            config: the model's configuration.
            body: the prefix of their names of the backbone's modules.
            head: the prefix of those of the last stage, if it is the head of a C4 model.
        """
        if config.backbone.name != "resnet":
            return
        for ours, theirs in self.stem.items():
            yield f"backbone/{ours}", body + theirs
        for stage, blocks in enumerate(config.backbone.stage_sizes):
            module = config.last_stage_module if stage == 3 else "backbone"
            prefix = body if module == "backbone" else head
            for block in range(blocks):
                deformable = config.backbone.deformable.in_block(stage, block)
                for ours, theirs in (self.block | self.deformable if deformable else self.block).items():
                    if block == 0 or "shortcut" not in ours:
                        name = self.stage.format(stage=self.first + stage, block=block, module=theirs)
                        path = f"stage{stage + 1}_block{block}/{ours}"
                        yield f"{module}/{path}", prefix + name


STEM = {"conv1": "conv1", "bn1": "bn1"}
BLOCK = {name: name for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")} | _PROJECTION

TORCHVISION = ResNetNames(STEM, "layer{stage}.{block}.{module}", 1, BLOCK)
MMDETECTION = dataclasses.replace(TORCHVISION, deformable={"conv2/offset": "conv2.conv_offset"})
YOLACT = ResNetNames(STEM, "layers.{stage}.{block}.{module}", 0, BLOCK, {"conv2/offset": "conv2.conv_offset_mask"})
MASKRCNN_BENCHMARK = ResNetNames(
    {"conv1": "stem.conv1", "bn1": "stem.bn1"},
    "layer{stage}.{block}.{module}",
    1,
    BLOCK,
    {"conv2": "conv2.conv", "conv2/offset": "conv2.offset"},
)
DETECTRON2 = ResNetNames(
    {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"},
    "res{stage}.{block}.{module}",
    2,
    {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}
    | {f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)}
    | {"shortcut": "shortcut", "bn_shortcut": "shortcut.norm"},
    {"conv2/offset": "conv2_offset"},
)
# The Caffe2 names in MSRA's classifiers and in Detectron.
CAFFE2 = ResNetNames(
    {"conv1": "conv1", "bn1": "res_conv1_bn"},
    "res{stage}_{block}_{module}",
    2,
    {f"conv{i}": f"branch2{letter}" for i, letter in enumerate("abc", 1)}
    | {f"bn{i}": f"branch2{letter}_bn" for i, letter in enumerate("abc", 1)}
    | {"shortcut": "branch1", "bn_shortcut": "branch1_bn"},
)
