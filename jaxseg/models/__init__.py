"""Detectors as Flax linen modules, behind one interface, each with its own configuration."""

from jaxseg.models.anchored.config import InputConfig
from jaxseg.models.anchored.conventions import DETECTRON2, MASKRCNN_BENCHMARK, MMDETECTION, TORCHVISION, Conventions
from jaxseg.models.backbones.config import (
    DARKNET53,
    IMAGENET_RESNET50,
    MSRA_RESNET50,
    RESNET50,
    RESNET101,
    RESNET152,
    BackboneConfig,
    BackboneModelConfig,
    DeformableConfig,
)
from jaxseg.models.build import build_model, init_variables, trainable
from jaxseg.models.detector import Detector, detector_of
from jaxseg.models.rcnn.config import RcnnConfig, RoiConfig, RpnConfig
from jaxseg.models.rcnn.network import Rcnn, RcnnOutputs
from jaxseg.models.retinanet.config import RetinaNetConfig
from jaxseg.models.retinanet.network import RetinaNet, RetinaNetOutputs
from jaxseg.models.yolact.config import DetectionConfig, LossConfig, YolactConfig
from jaxseg.models.yolact.network import Yolact
from jaxseg.models.yolact.outputs import YolactOutputs

__all__ = [
    "DARKNET53",
    "DETECTRON2",
    "IMAGENET_RESNET50",
    "MASKRCNN_BENCHMARK",
    "MMDETECTION",
    "MSRA_RESNET50",
    "RESNET50",
    "RESNET101",
    "RESNET152",
    "TORCHVISION",
    "BackboneConfig",
    "BackboneModelConfig",
    "Conventions",
    "DeformableConfig",
    "DetectionConfig",
    "Detector",
    "InputConfig",
    "LossConfig",
    "Rcnn",
    "RcnnConfig",
    "RcnnOutputs",
    "RetinaNet",
    "RetinaNetConfig",
    "RetinaNetOutputs",
    "RoiConfig",
    "RpnConfig",
    "Yolact",
    "YolactConfig",
    "YolactOutputs",
    "build_model",
    "detector_of",
    "init_variables",
    "trainable",
]
