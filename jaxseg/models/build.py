"""From a configuration to a detector and its variables."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.config import Config
from jaxseg.models.detector import Detector, detector_class


def build_model(config: Config) -> Detector:
    """The detector that `config.model` describes. Its parameters are float32 whatever `config.model.dtype` is."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return detector_class(type(config.model)).from_config(config, jnp.dtype(dtype))


def init_variables(model: Detector, config: Config, seed: int = 0) -> dict[str, Any]:
    """Fresh variables `{"params": ..., "batch_stats": ...}`, initialized as the original does without weights."""
    height, width = model.input_spec.input_sizes[0]
    # Only the variables are asked for, so nothing of the forward pass is compiled.
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, height, width, 3), jnp.uint8), method="initialize"))
    return dict(init(jax.random.key(seed)))


def trainable(config: Config, params: Any) -> Any:
    """For each parameter, whether training moves it."""
    model = build_model(config)
    return jax.tree_util.tree_map_with_path(lambda path, _: model.learns(tuple(key.key for key in path)), params)
