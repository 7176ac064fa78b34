"""From a configuration to a detector and its variables."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.config import Config, RcnnConfig, RetinaNetConfig
from jaxseg.models.detector import Detector
from jaxseg.models.rcnn import Rcnn
from jaxseg.models.retinanet import RetinaNet
from jaxseg.models.yolact import Yolact

# Batch norm over fewer images than this does more harm than good (the original's rule).
MIN_BATCH_NORM_IMAGES = 6


def build_model(config: Config) -> Detector:
    """The detector that `config.model` describes. Its parameters stay float32 whatever `config.model.dtype` is."""
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if isinstance(config.model, RcnnConfig):
        return Rcnn(config.model, jnp.dtype(dtype))
    if isinstance(config.model, RetinaNetConfig):
        return RetinaNet(config.model, jnp.dtype(dtype))
    return Yolact(config.model, freeze_batch_norm=freezes_batch_norm(config), dtype=jnp.dtype(dtype))


def freezes_batch_norm(config: Config) -> bool:
    """Whether training leaves all batch norms as they are; "auto" asks for a global batch of 6 images to train them."""
    rule = config.model.batch_norm
    return rule == "frozen" or (rule == "auto" and config.train.batch_size < MIN_BATCH_NORM_IMAGES)


def init_variables(model: Detector, config: Config, seed: int = 0) -> dict[str, Any]:
    """Fresh variables `{"params": ..., "batch_stats": ...}`, as the original starts them where it has no weights."""
    height, width = model.input_spec.image_sizes[0]
    # Only the variables are asked for, so nothing of the forward pass is compiled.
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, height, width, 3), jnp.uint8), method="initialize"))
    return dict(init(jax.random.key(seed)))


def trainable(config: Config, params: Any) -> Any:
    """For each parameter, whether training moves it."""
    model = build_model(config)
    return jax.tree_util.tree_map_with_path(lambda path, _: model.learns(tuple(key.key for key in path)), params)
