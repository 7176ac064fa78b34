"""The configuration: typed dataclasses, config files, and overrides from the command line."""

from jaxseg.config.experiment import (
    MAX_STEPS,
    MIRROR_ONLY,
    RCNN_1X,
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    InitConfig,
    TrainConfig,
    load_config,
    override,
    parse_config_flags,
    show_differences,
)
from jaxseg.config.model import ModelConfig
from jaxseg.config.values import from_dict, require, show, to_dict
from jaxseg.errors import ConfigError

__all__ = [
    "MAX_STEPS",
    "MIRROR_ONLY",
    "RCNN_1X",
    "AugmentConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "InitConfig",
    "ModelConfig",
    "TrainConfig",
    "from_dict",
    "load_config",
    "override",
    "parse_config_flags",
    "require",
    "show",
    "show_differences",
    "to_dict",
]
