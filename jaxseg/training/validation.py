"""What a run looks at between steps: losses on the validation images, COCO's metrics, and a few pictures with detections."""

from pathlib import Path

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxseg.config import Config
from jaxseg.data.dataset import InstanceDataset
from jaxseg.training.optimizer import Tree


class Validation:
    def __init__(self, config: Config, model: nn.Module, dataset: InstanceDataset, mesh: Mesh, run_folder: Path):
        pass

    def __call__(self, step: int, variables: dict[str, Tree]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        return {}, {}
