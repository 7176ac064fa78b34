"""Backbones, and YOLACT."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxseg.config.values import require


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """`resnet` (bottlenecks) or `darknet`, by blocks a stage and the stem's width."""

    name: Literal["resnet", "darknet"] = "resnet"
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    # RGB, in 0..255. Darknet divides by 255 only.
    pixel_mean: tuple[float, ...] = (123.68, 116.78, 103.94)
    pixel_std: tuple[float, ...] = (58.40, 57.12, 57.38)
    # Of a ResNet's blocks: the stride sits on the first 1x1 convolution, as in MSRA's weights, and not on the 3x3.
    stride_in_1x1: bool = False
    # Of a ResNet. "group": 32 groups a layer.
    norm: Literal["batch", "group"] = "batch"
    # Added to the variance.
    norm_epsilon: float = 1e-5
    # Training leaves the first so many parts as they are: 1 is the stem, 2 the stem and C2, ...
    frozen_stages: int = 0

    def validate(self, key: str) -> None:
        stages = 4 if self.name == "resnet" else 5
        require(len(self.stage_sizes) == stages, f"{key}.stage_sizes", self.stage_sizes, f"{stages} stages for a {self.name}")
        require(min(self.stage_sizes) >= 1, f"{key}.stage_sizes", self.stage_sizes, "at least one block a stage")
        require(self.width >= 1, f"{key}.width", self.width, "at least 1")
        for name in ("pixel_mean", "pixel_std"):
            require(len(getattr(self, name)) == 3, f"{key}.{name}", getattr(self, name), "three numbers, for R, G and B")
        require(min(self.pixel_std) > 0, f"{key}.pixel_std", self.pixel_std, "numbers above 0")
        require(self.norm_epsilon >= 0, f"{key}.norm_epsilon", self.norm_epsilon, "0 or more")
        require(0 <= self.frozen_stages <= stages + 1, f"{key}.frozen_stages", self.frozen_stages, f"0 to {stages + 1}")
        plain = self.norm == "batch" and not self.stride_in_1x1
        require(self.name == "resnet" or plain, f"{key}.name", self.name, "resnet, for stride_in_1x1 and group norm are of ResNets")


RESNET50 = BackboneConfig(stage_sizes=(3, 4, 6, 3))
RESNET101 = BackboneConfig(stage_sizes=(3, 4, 23, 3))
RESNET152 = BackboneConfig(stage_sizes=(3, 8, 36, 3))
DARKNET53 = BackboneConfig(
    name="darknet", stage_sizes=(1, 2, 8, 8, 4), width=32, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(255.0, 255.0, 255.0)
)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and rules of YOLACT's losses (paper section 3; numbers as dbolya/yolact ships them)."""

    box_weight: float = 1.5
    class_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    # A prior that lies in a crowd region by more than this part of its area is neither positive nor negative.
    crowd_overlap: float = 0.7
    negatives_per_positive: int = 3
    # Negatives mined in an image without positives. The original has 0: such an image teaches nothing.
    negatives_without_positives: int = 0
    max_mask_positives: int = 100

    def validate(self, key: str) -> None:
        for name in ("box_weight", "class_weight", "mask_weight", "semantic_weight"):
            require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        for name in ("positive_iou", "negative_iou", "crowd_overlap"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        require(
            self.negative_iou <= self.positive_iou, f"{key}.negative_iou", self.negative_iou, f"at most positive_iou, {self.positive_iou}"
        )
        require(self.negatives_per_positive >= 1, f"{key}.negatives_per_positive", self.negatives_per_positive, "at least 1")
        require(self.negatives_without_positives >= 0, f"{key}.negatives_without_positives", self.negatives_without_positives, "0 or more")
        require(self.max_mask_positives >= 1, f"{key}.max_mask_positives", self.max_mask_positives, "at least 1")


@dataclasses.dataclass(frozen=True)
class DetectionConfig:
    """From raw outputs to detections, as the original's `Detect`."""

    nms: Literal["fast", "cross_class", "greedy"] = "fast"
    # A prior is a candidate when its best foreground probability exceeds this.
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    top_k: int = 200
    max_detections: int = 100

    def validate(self, key: str) -> None:
        for name in ("score_threshold", "iou_threshold"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("top_k", "max_detections"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")


@dataclasses.dataclass(frozen=True)
class YolactConfig:
    """YOLACT (arXiv:1904.02689). Defaults: YOLACT-base."""

    kind: Literal["yolact"] = "yolact"
    num_classes: int = 80
    image_size: int = 550
    backbone: BackboneConfig = RESNET101
    fpn_channels: int = 256
    head_channels: int = 256
    prototype_channels: int = 256
    num_prototypes: int = 32
    # One tuple a level, P3 to P7, in pixels.
    anchor_scales: tuple[tuple[float, ...], ...] = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
    anchor_aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    # The published weights learned with the height overwritten by the width.
    square_anchors: bool = True
    # "auto": frozen when the global batch is under 6 images, as the original does per GPU.
    batch_norm: Literal["auto", "train", "frozen"] = "auto"
    # Of the convolutions; "auto" is bfloat16 on GPUs and TPUs, float32 on CPUs. Parameters, boxes and losses stay float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # Of non-maximum suppression: "auto" takes the kernels on NVIDIA GPUs that run them and plain JAX ("xla") elsewhere.
    implementation: Literal["auto", "xla", "mosaic_gpu"] = "auto"
    losses: LossConfig = LossConfig()
    detection: DetectionConfig = DetectionConfig()

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns and finds masks."""
        return True

    def validate(self, key: str) -> None:
        self.backbone.validate(f"{key}.backbone")
        self.losses.validate(f"{key}.losses")
        self.detection.validate(f"{key}.detection")
        require(self.num_classes >= 1, f"{key}.num_classes", self.num_classes, "at least 1 (background is not counted)")
        require(self.image_size >= 32, f"{key}.image_size", self.image_size, "at least 32 pixels")
        for name in ("fpn_channels", "head_channels", "prototype_channels", "num_prototypes"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        require(len(self.anchor_scales) == 5, f"{key}.anchor_scales", self.anchor_scales, "five tuples of scales, for P3 to P7")
        counts = {len(scales) for scales in self.anchor_scales}
        require(
            len(counts) == 1 and min(counts) >= 1,
            f"{key}.anchor_scales",
            self.anchor_scales,
            "the same number of scales on every level, for the head is shared",
        )
        require(all(s > 0 for scales in self.anchor_scales for s in scales), f"{key}.anchor_scales", self.anchor_scales, "scales above 0")
        require(
            len(self.anchor_aspect_ratios) >= 1 and min(self.anchor_aspect_ratios) > 0,
            f"{key}.anchor_aspect_ratios",
            self.anchor_aspect_ratios,
            "one or more ratios above 0",
        )
