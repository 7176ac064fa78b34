"""Instance segmentation and detection in JAX: pure functions, fixed shapes, the originals' numbers."""

from jaxseg.config import Config, ConfigError, load_config
from jaxseg.errors import UserError
from jaxseg.models import build_model, init_variables
from jaxseg.pictures import ImageError
from jaxseg.predictor import Prediction, Predictor
from jaxseg.weights import WeightsError, load_weights

__all__ = [
    "Config",
    "ConfigError",
    "ImageError",
    "Prediction",
    "Predictor",
    "UserError",
    "WeightsError",
    "build_model",
    "init_variables",
    "load_config",
    "load_weights",
]
