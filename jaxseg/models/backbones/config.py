"""The settings of a backbone, and the backbones that the originals start from."""

import dataclasses
from typing import Literal

from jaxseg.config.model import ModelConfig
from jaxseg.config.values import require


@dataclasses.dataclass(frozen=True)
class DeformableConfig:
    """The deformable 3x3 convolutions of a ResNet (arXiv:1703.06211, arXiv:1811.11168)."""

    # For C2 to C5: every n-th block, from the first on, has one; 0 is none.
    every: tuple[int, ...] = (0, 0, 0, 0)
    # Whether the samples are multiplied by learned factors, as in version 2.
    modulated: bool = True
    # The number of groups of channels with offsets of their own.
    offset_groups: int = 1
    # Whether the deformable convolutions have a bias, which ordinary convolutions before a norm do
    # not have; those of YOLACT++ do.
    bias: bool = False

    @property
    def any(self) -> bool:
        """Whether any convolution is deformable."""
        return any(self.every)

    def in_block(self, stage: int, block: int) -> bool:
        """Whether a block has one; stage 0 ends in C2."""
        return self.every[stage] > 0 and block % self.every[stage] == 0

    def validate(self, key: str) -> None:
        require(len(self.every) == 4 and min(self.every) >= 0, f"{key}.every", self.every, "four numbers of 0 or more, for C2 to C5")
        require(self.offset_groups >= 1, f"{key}.offset_groups", self.offset_groups, "at least 1")


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """A ResNet with bottleneck blocks, or a Darknet."""

    name: Literal["resnet", "darknet"] = "resnet"
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    # The mean and standard deviation of R, G and B in 0..255. Darknet only divides by 255.
    pixel_mean: tuple[float, ...] = (123.68, 116.78, 103.94)
    pixel_std: tuple[float, ...] = (58.40, 57.12, 57.38)
    # Whether the stride of a ResNet's block is on its first 1x1 convolution, as in MSRA's weights,
    # instead of on the 3x3 convolution.
    stride_in_1x1: bool = False
    # The norm of a ResNet; "group" has 32 groups in each layer.
    norm: Literal["batch", "group"] = "batch"
    # The number that is added to the variance before its root is taken.
    norm_epsilon: float = 1e-5
    deformable: DeformableConfig = DeformableConfig()
    # The number of parts, from the input on, that do not learn: 1 is the stem, 2 the stem and C2,
    # and so on.
    frozen_stages: int = 0

    def validate(self, key: str) -> None:
        stages = 4 if self.name == "resnet" else 5
        require(len(self.stage_sizes) == stages, f"{key}.stage_sizes", self.stage_sizes, f"{stages} stages for a {self.name}")
        require(min(self.stage_sizes) >= 1, f"{key}.stage_sizes", self.stage_sizes, "at least one block a stage")
        require(self.width >= 1, f"{key}.width", self.width, "at least 1")
        for name in ("pixel_mean", "pixel_std"):
            require(len(getattr(self, name)) == 3, f"{key}.{name}", getattr(self, name), "three numbers, for R, G and B")
        require(min(self.pixel_std) > 0, f"{key}.pixel_std", self.pixel_std, "numbers above 0")
        require(self.norm_epsilon >= 0, f"{key}.norm_epsilon", self.norm_epsilon, "0 or more")
        require(0 <= self.frozen_stages <= stages + 1, f"{key}.frozen_stages", self.frozen_stages, f"0 to {stages + 1}")
        self.deformable.validate(f"{key}.deformable")
        groups = self.deformable.offset_groups
        require(self.width % groups == 0, f"{key}.deformable.offset_groups", groups, f"a divisor of the width, {self.width}")
        plain = self.norm == "batch" and not self.stride_in_1x1 and not self.deformable.any
        require(
            self.name == "resnet" or plain,
            f"{key}.name",
            self.name,
            "resnet, because only ResNets have stride_in_1x1, group norm and deformable convolutions",
        )


RESNET50 = BackboneConfig(stage_sizes=(3, 4, 6, 3))
RESNET101 = BackboneConfig(stage_sizes=(3, 4, 23, 3))
RESNET152 = BackboneConfig(stage_sizes=(3, 8, 36, 3))
DARKNET53 = BackboneConfig(
    name="darknet", stage_sizes=(1, 2, 8, 8, 4), width=32, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(255.0, 255.0, 255.0)
)

# MSRA's ResNet-50 with RGB input. Its colours are not divided by a standard deviation, and its
# batch norm is only a scale and a bias.
MSRA_RESNET50 = dataclasses.replace(
    RESNET50,
    pixel_mean=(122.7717, 115.9465, 102.9801),
    pixel_std=(1.0, 1.0, 1.0),
    stride_in_1x1=True,
    norm_epsilon=0.0,
    frozen_stages=2,
)
# torchvision's ResNet-50, with the colours normalised as in mmdetection and torchvision.
IMAGENET_RESNET50 = dataclasses.replace(RESNET50, pixel_mean=(123.675, 116.28, 103.53), pixel_std=(58.395, 57.12, 57.375), frozen_stages=2)


@dataclasses.dataclass(frozen=True)
class BackboneModelConfig(ModelConfig):
    """The settings of a detector on one of these backbones, whose published weights it can load."""

    backbone: BackboneConfig = RESNET50

    @property
    def last_stage_module(self) -> str:
        """The module with a ResNet's C5: "backbone", or the head of regions pooled from C4."""
        return "backbone"

    def validate(self, key: str) -> None:
        super().validate(key)
        self.backbone.validate(f"{key}.backbone")
