"""A YOLACT for the demo's shapes that compiles in a second.

Its variables are noise, so it has many detections, all of which are wrong.
"""

from typing import Any

import jax
import numpy as np

from jaxseg.config import Config, load_config, override
from jaxseg.data.sources.shapes import CATEGORIES
from jaxseg.models import BackboneConfig, build_model, init_variables

CONFIG = override(
    load_config("configs/demo_shapes.py"),
    {
        "model.image_size": 64,
        "model.backbone": BackboneConfig(stage_sizes=(1, 1, 1, 1), width=4),
        "model.fpn_channels": 8,
        "model.head_channels": 8,
        "model.prototype_channels": 8,
        "model.num_prototypes": 4,
        "data.class_names": tuple(CATEGORIES.values()),
        "data.category_ids": tuple(CATEGORIES),
    },
)


def variables(config: Config = CONFIG) -> dict[str, Any]:
    """Makes positive noise, which is also valid for variances.

    Compiling `init_variables` would take too long for a test.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(build_model(config), config))
    noise = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), shapes)
    kernels = lambda path, leaf: (leaf - 1) * 0.5 if "kernel" in jax.tree_util.keystr(path) else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(kernels, noise)
