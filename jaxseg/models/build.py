"""Building a detector and its variables from a configuration."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.config import Config
from jaxseg.models.detector import Detector, detector_class


def build_model(config: Config) -> Detector:
    """Builds the detector that `config.model` describes.

    Its parameters are float32, whatever `config.model.dtype` is.
    """
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return detector_class(type(config.model)).from_config(config, jnp.dtype(dtype))


def init_variables(model: Detector, config: Config, seed: int = 0) -> dict[str, Any]:
    """Draws initial variables from the distributions that the original uses.

    Args:
        model: the detector.
        config: its configuration.
        seed: the seed of the random numbers.

    Returns:
        `{"params": ..., "batch_stats": ...}`.
    """
    return dict(_initial_variables(model, jax.random.key(seed)))


# The trace is kept: a model's shapes are often wanted before its variables.
@functools.partial(jax.jit, static_argnums=0)
def _initial_variables(model: Detector, key: jax.Array) -> Any:
    height, width = model.input_spec.input_sizes[0]
    # Only the variables are returned, so the forward pass is not compiled.
    return model.init(key, jnp.zeros((1, height, width, 3), jnp.uint8), method="initialize")


def trainable(config: Config, params: Any) -> Any:
    """Returns for each parameter whether training changes it, in the structure of `params`."""
    model = build_model(config)
    return jax.tree_util.tree_map_with_path(lambda path, _: model.learns(tuple(key.key for key in path)), params)
