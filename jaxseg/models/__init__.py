"""Detectors as Flax linen modules, behind one interface."""

from jaxseg.models.build import build_model, freezes_batch_norm, init_variables, trainable
from jaxseg.models.detector import Detector
from jaxseg.models.yolact import Yolact, YolactOutputs

__all__ = ["Detector", "Yolact", "YolactOutputs", "build_model", "freezes_batch_norm", "init_variables", "trainable"]
