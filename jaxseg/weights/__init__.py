"""Reading and writing weights: file formats, and tables that map other projects' names to ours."""

from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.run_folder import CheckpointError
from jaxseg.weights.load import load_weights
from jaxseg.weights.names.registry import register_names
from jaxseg.weights.names.rules import NameTable

__all__ = ["CheckpointError", "NameTable", "WeightsError", "load_weights", "register_names"]
