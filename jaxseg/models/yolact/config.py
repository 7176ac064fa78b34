"""The settings of YOLACT."""

import dataclasses
from typing import ClassVar, Literal, cast, get_args

from jaxseg.config.model import ModelConfig
from jaxseg.config.values import require
from jaxseg.models.backbones.config import RESNET101, BackboneConfig, BackboneModelConfig

# As in the original, batch norm with fewer images than this does more harm than good.
MIN_BATCH_NORM_IMAGES = 6

NmsRule = Literal["fast", "cross_class", "greedy"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The weights and rules of YOLACT's losses (section 3 of the paper), as in dbolya/yolact."""

    box_weight: float = 1.5
    class_weight: float = 1.0
    mask_weight: float = 6.125
    semantic_weight: float = 1.0
    mask_iou_weight: float = 25.0
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    # An anchor with more than this fraction of its area in a crowd region is neither positive nor
    # negative.
    crowd_overlap: float = 0.7
    negatives_per_positive: int = 3
    # The number of negatives that learn in an image without positives. In the original this is 0,
    # so that nothing is learned from such an image.
    negatives_without_positives: int = 0
    max_mask_positives: int = 100
    # A mask of at most this many pixels at the resolution of the prototypes does not teach the
    # network that estimates the masks' IoU.
    min_mask_iou_area: float = 25.0

    def validate(self, key: str) -> None:
        for name in ("box_weight", "class_weight", "mask_weight", "semantic_weight", "mask_iou_weight", "min_mask_iou_area"):
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
    """The settings of non-maximum suppression, as of the original's `Detect`."""

    nms: NmsRule = "fast"
    # An anchor is a candidate if its largest foreground probability exceeds this.
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
class YolactConfig(BackboneModelConfig):
    """The settings of YOLACT (arXiv:1904.02689) and YOLACT++ (arXiv:1912.06218).

    The defaults are those of YOLACT-base.
    """

    kind: Literal["yolact"] = "yolact"
    image_size: int = 550
    backbone: BackboneConfig = RESNET101
    fpn_channels: int = 256
    head_channels: int = 256
    prototype_channels: int = 256
    num_prototypes: int = 32
    # The channels of the convolutions of the network that estimates the masks' IoU (YOLACT++,
    # section 5); () leaves it out.
    mask_iou_channels: tuple[int, ...] = ()
    # One tuple of scales, in pixels, for each level from P3 to P7.
    anchor_scales: tuple[tuple[float, ...], ...] = ((24.0,), (48.0,), (96.0,), (192.0,), (384.0,))
    anchor_aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    # Whether anchors are squares: their heights are overwritten by their widths, as they were when
    # the published weights were trained.
    square_anchors: bool = True
    # "auto" freezes batch norm if the global batch has fewer than 6 images; the original does so
    # for the batch of each GPU.
    batch_norm: Literal["auto", "train", "frozen"] = "auto"
    losses: LossConfig = LossConfig()
    detection: DetectionConfig = DetectionConfig()

    resumable_keys: ClassVar[tuple[str, ...]] = ("detection.",)
    nms_rules: ClassVar[tuple[str, ...]] = get_args(NmsRule)

    @property
    def has_masks(self) -> bool:
        return True

    @property
    def level_sides(self) -> tuple[int, ...]:
        """The sides of P3 to P7. Each convolution with stride 2 rounds up."""
        sides = [self.image_size]
        for _ in range(7):
            sides.append((sides[-1] + 1) // 2)
        return tuple(sides[3:])

    @property
    def mask_iou_sides(self) -> tuple[int, ...]:
        """The sides of the prototypes, and of each output of the network that estimates IoUs."""
        sides = [2 * self.level_sides[0]]
        for _ in self.mask_iou_channels:
            sides.append((sides[-1] - 1) // 2)
        return tuple(sides)

    def freezes_batch_norm(self, batch_size: int) -> bool:
        """Whether training leaves all batch norms as they are.

        Args:
            batch_size: the number of images in the global batch.
        """
        too_few = batch_size < MIN_BATCH_NORM_IMAGES
        return self.batch_norm == "frozen" or (self.batch_norm == "auto" and too_few)

    def with_nms(self, rule: str) -> ModelConfig:
        if rule not in self.nms_rules:
            return super().with_nms(rule)
        return dataclasses.replace(self, detection=dataclasses.replace(self.detection, nms=cast(NmsRule, rule)))

    def validate(self, key: str) -> None:
        super().validate(key)
        self.losses.validate(f"{key}.losses")
        self.detection.validate(f"{key}.detection")
        require(self.image_size >= 32, f"{key}.image_size", self.image_size, "at least 32 pixels")
        for name in ("fpn_channels", "head_channels", "prototype_channels", "num_prototypes"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        require(all(c >= 1 for c in self.mask_iou_channels), f"{key}.mask_iou_channels", self.mask_iou_channels, "at least 1 each")
        require(
            min(self.mask_iou_sides) >= 1,
            f"{key}.mask_iou_channels",
            self.mask_iou_channels,
            f"fewer convolutions, because masks of {self.mask_iou_sides[0]} pixels become too small",
        )
        require(len(self.anchor_scales) == 5, f"{key}.anchor_scales", self.anchor_scales, "five tuples of scales, for P3 to P7")
        counts = {len(scales) for scales in self.anchor_scales}
        require(
            len(counts) == 1 and min(counts) >= 1,
            f"{key}.anchor_scales",
            self.anchor_scales,
            "the same number of scales on every level, because the levels share the head",
        )
        require(all(s > 0 for scales in self.anchor_scales for s in scales), f"{key}.anchor_scales", self.anchor_scales, "scales above 0")
        require(
            len(self.anchor_aspect_ratios) >= 1 and min(self.anchor_aspect_ratios) > 0,
            f"{key}.anchor_aspect_ratios",
            self.anchor_aspect_ratios,
            "one or more ratios above 0",
        )
