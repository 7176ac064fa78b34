"""Faster R-CNN, Mask R-CNN and RetinaNet, and what their four originals do differently."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxseg.config.models import RESNET50, BackboneConfig
from jaxseg.config.values import require

# Sides of the network's input are multiples of this, so that every level of the pyramid halves evenly.
SIZE_DIVISOR = 32


@dataclasses.dataclass(frozen=True)
class Conventions:
    """Where maskrcnn-benchmark, detectron2, mmdetection and torchvision disagree. Weights go with the conventions they learned with."""

    # How a picture becomes the network's input: the size's rounding, and who resizes.
    resize: Literal["opencv", "pillow", "pillow_truncated", "float"] = "pillow"
    # 1: a box ends in its last pixel, so that its width is x2 - x1 + 1.
    pixel_offset: float = 0.0
    # "legacy": Detectron's whole numbers, of windows that count pixels inclusively; "rounded": corners rounded to even.
    cell_anchors: Literal["exact", "legacy", "rounded"] = "exact"
    # "measured": the input's size over the level's, cut to a whole number, instead of the level's stride.
    anchor_strides: Literal["level", "measured"] = "level"
    # Anchors that reach out of the picture by more do not learn; negative: all learn.
    anchor_border: float = -1.0
    # Anchors beyond the picture's own size, rounded up to a multiple of 32, learn, too.
    padding_anchors: bool = True
    # What an object without a good anchor gets: those anchors that overlap it most ("best_anchor"), which may be
    # trained towards another object ("own_argmax").
    forced_match: Literal["own_argmax", "best_anchor"] = "own_argmax"
    forced_match_iou: float = 0.0
    # The same among the proposals, for an object whose best one overlaps it by roi.positive_iou.
    forced_roi_match: bool = False
    # A box's size may not shrink to less than 16 / 1000 of its anchor's, as it may not grow to more than 1000 / 16.
    clamp_both_sides: bool = False
    # Proposals are ranked by the sigmoid of their score; many of them tie at 1.
    rank_probabilities: bool = False
    # In training this many images share one quota of proposals.
    proposal_group: int = 1
    # Proposals with a side up to this go; negative: all stay.
    min_proposal_side: float = 0.0
    # Where the loss of a box turns from quadratic to linear; 0: L1.
    rpn_box_beta: float = 0.0
    roi_box_beta: float = 0.0
    # The RPN's losses are divided by the anchors sampled (positive ones and negative ones each at least one an image, with
    # "sampled_both"), or by the quota of samples, reached or not.
    rpn_normalizer: Literal["sampled", "sampled_both", "quota"] = "quota"
    # RoIAlign shifts by half a cell.
    roi_aligned: bool = True
    # RoIAlign's samples a bin and axis; 0: as many as the bin has cells.
    roi_sampling_ratio: int = 0
    # Against rounding in a box's pyramid level: added to its size over 224, and to the level.
    level_ratio_epsilon: float = 1e-8
    level_epsilon: float = 0.0
    # Detections with a side up to this go before non-maximum suppression; negative: all stay.
    min_detection_side: float = 0.0
    # The parts of a mask's cells that an object covers are learned as they are, not rounded to 0 or 1.
    soft_mask_targets: bool = False
    # How a mask gets back into the picture: sampled where its box is, or stretched over the box's whole pixels.
    mask_paste: Literal["box", "integer_box"] = "box"

    def validate(self, key: str) -> None:
        for name in ("pixel_offset", "forced_match_iou", "level_ratio_epsilon", "level_epsilon"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("rpn_box_beta", "roi_box_beta", "roi_sampling_ratio"):
            require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        require(self.proposal_group >= 1, f"{key}.proposal_group", self.proposal_group, "at least 1")


DETECTRON2 = Conventions()
MMDETECTION = Conventions(
    resize="opencv",
    padding_anchors=False,
    forced_match="best_anchor",
    forced_match_iou=0.3,
    clamp_both_sides=True,
    rank_probabilities=True,
    min_proposal_side=-1.0,
    rpn_normalizer="sampled_both",
    # 1e-6, of the size over 56.
    level_ratio_epsilon=0.25e-6,
    min_detection_side=-1.0,
)
MASKRCNN_BENCHMARK = Conventions(
    resize="pillow_truncated",
    pixel_offset=1.0,
    cell_anchors="legacy",
    anchor_border=0.0,
    rank_probabilities=True,
    proposal_group=2,
    min_proposal_side=-1.0,
    rpn_box_beta=1 / 9,
    roi_box_beta=1.0,
    rpn_normalizer="sampled",
    roi_aligned=False,
    roi_sampling_ratio=2,
    level_ratio_epsilon=1e-6,
    min_detection_side=-1.0,
    mask_paste="integer_box",
)
TORCHVISION = Conventions(
    resize="float",
    cell_anchors="rounded",
    anchor_strides="measured",
    min_proposal_side=1e-3,
    rpn_box_beta=1 / 9,
    roi_box_beta=1 / 9,
    rpn_normalizer="sampled",
    roi_aligned=False,
    roi_sampling_ratio=2,
    level_ratio_epsilon=0.0,
    level_epsilon=1e-6,
    min_detection_side=1e-2,
    soft_mask_targets=True,
    mask_paste="integer_box",
)


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """The network's input: pictures keep their proportions and are padded on the right and below to one of a few shapes."""

    # Training draws one of them; evaluation takes the largest.
    shorter_side: tuple[int, ...] = (800,)
    longer_side: int = 1333
    # Height and width of each shape; empty: one that holds every landscape picture, and one for portraits.
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def padded_shapes(self) -> tuple[tuple[int, int], ...]:
        """`shapes`, or the two that hold every picture."""
        if self.shapes:
            return tuple((height, width) for height, width in self.shapes)
        short, long = (-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in (max(self.shorter_side), self.longer_side))
        return ((short, long), (long, short)) if short != long else ((short, long),)

    def validate(self, key: str) -> None:
        require(len(self.shorter_side) >= 1, f"{key}.shorter_side", self.shorter_side, "one side or more")
        require(min(self.shorter_side) >= SIZE_DIVISOR, f"{key}.shorter_side", self.shorter_side, f"at least {SIZE_DIVISOR} pixels")
        require(self.longer_side >= max(self.shorter_side), f"{key}.longer_side", self.longer_side, "at least the largest of shorter_side")
        even = all(len(shape) == 2 and min(shape) > 0 and not any(side % SIZE_DIVISOR for side in shape) for shape in self.shapes)
        require(even, f"{key}.shapes", self.shapes, f"pairs of height and width, multiples of {SIZE_DIVISOR}")


@dataclasses.dataclass(frozen=True)
class RpnConfig:
    """Region proposals: which anchors learn, and how many proposals go on."""

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    # Anchors of an image that learn, and the largest part of them that may be positive.
    samples: int = 256
    positive_fraction: float = 0.5
    # Of each level, by score.
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    nms_iou: float = 0.7
    # Of an image; in training of conventions.proposal_group images.
    post_nms_train: int = 1000
    post_nms_test: int = 1000

    def validate(self, key: str) -> None:
        for name in ("positive_iou", "negative_iou", "positive_fraction", "nms_iou"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        require(
            self.negative_iou <= self.positive_iou, f"{key}.negative_iou", self.negative_iou, f"at most positive_iou, {self.positive_iou}"
        )
        for name in ("samples", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")


@dataclasses.dataclass(frozen=True)
class RoiConfig:
    """Regions of interest: which of them learn, what is pooled, and what is kept as detections."""

    positive_iou: float = 0.5
    samples: int = 512
    positive_fraction: float = 0.25
    box_size: int = 7
    box_features: int = 1024
    mask_size: int = 14
    mask_channels: int = 256
    mask_convolutions: int = 4
    # Ground-truth masks come to the device as so many cells by so many, spread over their box.
    mask_crop_size: int = 112
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def validate(self, key: str) -> None:
        for name in ("positive_iou", "positive_fraction", "score_threshold", "nms_iou"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("samples", "box_size", "box_features", "mask_size", "mask_channels", "max_detections"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        require(self.mask_convolutions >= 0, f"{key}.mask_convolutions", self.mask_convolutions, "0 or more")
        require(
            self.mask_crop_size >= 8 and self.mask_crop_size % 8 == 0,
            f"{key}.mask_crop_size",
            self.mask_crop_size,
            "a multiple of 8, for the cells travel as bits",
        )


def _check_anchors(key: str, sizes: tuple[tuple[float, ...], ...], ratios: tuple[float, ...], levels: int) -> None:
    counts = {len(level) for level in sizes}
    require(len(sizes) == levels, f"{key}.anchor_sizes", sizes, f"one tuple a level, and there are {levels}")
    require(len(counts) == 1 and min(counts) >= 1, f"{key}.anchor_sizes", sizes, "as many sizes on each level, for the head is shared")
    require(all(size > 0 for level in sizes for size in level), f"{key}.anchor_sizes", sizes, "sizes above 0")
    require(len(ratios) >= 1 and min(ratios) > 0, f"{key}.anchor_aspect_ratios", ratios, "one or more ratios above 0")


# MSRA's ResNet-50 in RGB: colours not scaled, batch norm as a scale and a bias.
MSRA_RESNET50 = dataclasses.replace(
    RESNET50,
    pixel_mean=(122.7717, 115.9465, 102.9801),
    pixel_std=(1.0, 1.0, 1.0),
    stride_in_1x1=True,
    norm_epsilon=0.0,
    frozen_stages=2,
)
# torchvision's, as mmdetection and torchvision normalise colours.
IMAGENET_RESNET50 = dataclasses.replace(RESNET50, pixel_mean=(123.675, 116.28, 103.53), pixel_std=(58.395, 57.12, 57.375), frozen_stages=2)


@dataclasses.dataclass(frozen=True)
class RcnnConfig:
    """Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870).

    Defaults: Mask R-CNN, ResNet-50 with a feature pyramid, as maskrcnn-benchmark trains it.
    """

    kind: Literal["rcnn"] = "rcnn"
    num_classes: int = 80
    # False: Faster R-CNN.
    masks: bool = True
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = MSRA_RESNET50
    # What regions are pooled from: a pyramid; C4, with C5 as the head; or C5 at C4's resolution.
    neck: Literal["fpn", "c4", "dilated_c5"] = "fpn"
    fpn_channels: int = 256
    # One tuple a level (P2 to P6; or the one level), in pixels.
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    # Height over width.
    anchor_aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    # "eval": running statistics, while scales and biases learn; "frozen": these stay, too.
    batch_norm: Literal["train", "eval", "frozen"] = "frozen"
    # Of the convolutions; "auto" is bfloat16 on GPUs and TPUs, float32 on CPUs. Parameters, boxes and losses stay float32.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # Of RoIAlign and non-maximum suppression: "auto" takes the kernels on NVIDIA GPUs that run them and plain JAX ("xla") elsewhere.
    implementation: Literal["auto", "xla", "mosaic_gpu"] = "auto"
    rpn: RpnConfig = RpnConfig(post_nms_train=2000)
    roi: RoiConfig = RoiConfig()
    conventions: Conventions = MASKRCNN_BENCHMARK

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns and finds masks."""
        return self.masks

    def validate(self, key: str) -> None:
        require(self.num_classes >= 1, f"{key}.num_classes", self.num_classes, "at least 1 (background is not counted)")
        require(self.fpn_channels >= 1, f"{key}.fpn_channels", self.fpn_channels, "at least 1")
        require(self.backbone.name == "resnet", f"{key}.backbone.name", self.backbone.name, "resnet")
        for name in ("input", "backbone", "rpn", "roi", "conventions"):
            getattr(self, name).validate(f"{key}.{name}")
        _check_anchors(key, self.anchor_sizes, self.anchor_aspect_ratios, 5 if self.neck == "fpn" else 1)


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """RetinaNet (arXiv:1708.02002), ResNet-50 with a feature pyramid from P3 to P7, as maskrcnn-benchmark trains it."""

    kind: Literal["retinanet"] = "retinanet"
    num_classes: int = 80
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = MSRA_RESNET50
    fpn_channels: int = 256
    head_convolutions: int = 4
    anchor_sizes: tuple[tuple[float, ...], ...] = tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for size in (32, 64, 128, 256, 512))
    anchor_aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_beta: float = 0.11
    # The loss of the boxes is divided by so many times the number of positive anchors.
    box_normalizer: float = 4.0
    score_threshold: float = 0.05
    pre_nms: int = 1000
    nms_iou: float = 0.4
    max_detections: int = 100
    batch_norm: Literal["train", "eval", "frozen"] = "frozen"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    implementation: Literal["auto", "xla", "mosaic_gpu"] = "auto"
    # All anchors learn, those that reach out of the picture, too.
    conventions: Conventions = dataclasses.replace(MASKRCNN_BENCHMARK, anchor_border=-1.0)

    @property
    def has_masks(self) -> bool:
        """Whether the detector learns and finds masks."""
        return False

    def validate(self, key: str) -> None:
        for name in ("num_classes", "fpn_channels", "pre_nms", "max_detections"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        for name in ("positive_iou", "negative_iou", "focal_alpha", "score_threshold", "nms_iou"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("focal_gamma", "box_beta", "head_convolutions"):
            require(getattr(self, name) >= 0, f"{key}.{name}", getattr(self, name), "0 or more")
        require(self.box_normalizer > 0, f"{key}.box_normalizer", self.box_normalizer, "above 0")
        require(self.backbone.name == "resnet", f"{key}.backbone.name", self.backbone.name, "resnet")
        for name in ("input", "backbone", "conventions"):
            getattr(self, name).validate(f"{key}.{name}")
        _check_anchors(key, self.anchor_sizes, self.anchor_aspect_ratios, 5)
