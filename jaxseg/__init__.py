"""Instance segmentation and detection in JAX, with the numbers of the original implementations."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxseg.config import Config, ConfigError, load_config
from jaxseg.errors import UserError
from jaxseg.models import build_model, init_variables
from jaxseg.pictures import ImageError
from jaxseg.predictor import Prediction, Predictor
from jaxseg.weights import WeightsError, load_weights

if TYPE_CHECKING:
    from jaxseg.evaluation.evaluator import evaluate
    from jaxseg.training.loop import train

__all__ = [
    "Config",
    "ConfigError",
    "ImageError",
    "Prediction",
    "Predictor",
    "UserError",
    "WeightsError",
    "build_model",
    "evaluate",
    "init_variables",
    "load_config",
    "load_weights",
    "train",
]

# Orbax, Grain and TensorFlow Datasets are slow to import, and prediction does not need them.
_IMPORTED_ON_USE = {"evaluate": "jaxseg.evaluation.evaluator", "train": "jaxseg.training.loop"}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_IMPORTED_ON_USE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
