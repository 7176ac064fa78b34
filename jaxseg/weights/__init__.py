"""Readers of checkpoints, and the name maps to our variables."""

from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.run_folder import CheckpointError
from jaxseg.weights.load import load_weights

__all__ = ["CheckpointError", "WeightsError", "load_weights"]
