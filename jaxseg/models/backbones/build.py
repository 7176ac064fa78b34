"""Building a backbone from its configuration."""

from typing import Any

import flax.linen as nn

from jaxseg.models.backbones.config import BackboneConfig
from jaxseg.models.backbones.darknet import DarkNet
from jaxseg.models.backbones.resnet import ResNet
from jaxseg.models.layers import NormMode


def build_backbone(config: BackboneConfig, norm_mode: NormMode, dtype: Any, *, stages: int = 5, dilated_c5: bool = False) -> nn.Module:
    """Builds a backbone, whose last outputs are C3, C4 and C5.

    Args:
        config: the settings of the backbone.
        norm_mode: the mode of batch norm outside of the frozen stages.
        dtype: the type in which the convolutions compute.
        stages: the number of stages of a ResNet; one with 3 ends in C4.
        dilated_c5: whether C5 of a ResNet keeps C4's resolution.
    """
    if config.name == "darknet":
        return DarkNet(config.stage_sizes, config.width, norm_mode, dtype, name="backbone")
    return ResNet(
        stage_sizes=config.stage_sizes[:stages],
        width=config.width,
        stride_in_1x1=config.stride_in_1x1,
        norm=config.norm,
        norm_mode=norm_mode,
        norm_epsilon=config.norm_epsilon,
        deformable=config.deformable,
        frozen_stages=config.frozen_stages,
        dilated_c5=dilated_c5,
        dtype=dtype,
        name="backbone",
    )
