"""The settings of RetinaNet."""

import dataclasses
from typing import ClassVar, Literal

from jaxseg.config.values import require
from jaxseg.models.anchored.config import AnchoredConfig
from jaxseg.models.anchored.conventions import MASKRCNN_BENCHMARK, Conventions


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig(AnchoredConfig):
    """The settings of RetinaNet (arXiv:1708.02002).

    The defaults are a ResNet-50 with a feature pyramid from P3 to P7, as in maskrcnn-benchmark.
    """

    kind: Literal["retinanet"] = "retinanet"
    head_convolutions: int = 4
    anchor_sizes: tuple[tuple[float, ...], ...] = tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for size in (32, 64, 128, 256, 512))
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_beta: float = 0.11
    # The box loss is divided by the number of positive anchors times this.
    box_normalizer: float = 4.0
    score_threshold: float = 0.05
    pre_nms: int = 1000
    nms_iou: float = 0.4
    max_detections: int = 100
    # A negative `anchor_border` lets all anchors learn, also those that reach beyond the picture.
    conventions: Conventions = dataclasses.replace(MASKRCNN_BENCHMARK, anchor_border=-1.0)

    resumable_keys: ClassVar[tuple[str, ...]] = ("score_threshold", "pre_nms", "nms_iou", "max_detections")

    def validate(self, key: str) -> None:
        super().validate(key)
        for name in ("pre_nms", "max_detections"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        for name in ("positive_iou", "negative_iou", "focal_alpha", "score_threshold", "nms_iou"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("focal_gamma", "box_beta", "head_convolutions"):
            require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        require(self.box_normalizer > 0, f"{key}.box_normalizer", self.box_normalizer, "above 0")
