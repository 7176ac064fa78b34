"""The parameters that training leaves as they are, by their paths."""

import re

from jaxseg.models.backbones.config import BackboneConfig
from jaxseg.models.layers import NormMode


def is_norm(path: tuple[str, ...]) -> bool:
    """Whether a parameter is the scale or the bias of a norm; these modules are called `bn*`."""
    return any(module.startswith("bn") for module in path[:-1])


def in_frozen_stages(path: tuple[str, ...], frozen_stages: int) -> bool:
    """Whether a parameter belongs to the frozen first parts of the backbone.

    Args:
        path: the parameter's path.
        frozen_stages: the number of frozen parts; 1 is the stem, 2 the stem and C2, and so on.
    """
    if path[0] != "backbone":
        return False
    stage = re.match(r"stage(\d+)_", path[1])
    return (int(stage[1]) if stage else 0) < frozen_stages


def is_frozen(path: tuple[str, ...], backbone: BackboneConfig, batch_norm: NormMode) -> bool:
    """Whether a parameter belongs to a frozen batch norm or to the backbone's frozen stages."""
    frozen_norm = batch_norm == "frozen" and backbone.norm == "batch" and is_norm(path)
    return frozen_norm or in_frozen_stages(path, backbone.frozen_stages)
