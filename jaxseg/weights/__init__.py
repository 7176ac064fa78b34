"""Readers of checkpoints, and the name maps to our variables."""

from jaxseg.weights.files import WeightsError
from jaxseg.weights.load import load_weights
from jaxseg.weights.run_folder import CheckpointError

__all__ = ["CheckpointError", "WeightsError", "load_weights"]
