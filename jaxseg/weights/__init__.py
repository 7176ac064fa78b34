"""Readers of checkpoints, and the name maps to our variables."""

from jaxseg.weights.load import WeightsError, load_weights

__all__ = ["WeightsError", "load_weights"]
