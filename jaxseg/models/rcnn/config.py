"""The settings of Faster R-CNN and Mask R-CNN."""

import dataclasses
from typing import ClassVar, Literal

from jaxseg.config.values import require
from jaxseg.models.anchored.config import AnchoredConfig


@dataclasses.dataclass(frozen=True)
class RpnConfig:
    """The settings of the region proposal network, both of its training and of its proposals."""

    positive_iou: float = 0.7
    negative_iou: float = 0.3
    # The number of anchors of an image that learn; `positive_fraction` is the largest fraction of
    # them that is positive.
    samples: int = 256
    positive_fraction: float = 0.5
    # The number of best proposals of each level before non-maximum suppression, in training and in
    # evaluation.
    pre_nms_train: int = 2000
    pre_nms_test: int = 1000
    nms_iou: float = 0.7
    # The number of proposals that are kept after it: of each image, or in training of each group of
    # conventions.proposal_group images.
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
    """The settings of the heads: which regions learn, what is pooled, and which detections stay."""

    positive_iou: float = 0.5
    samples: int = 512
    positive_fraction: float = 0.25
    box_size: int = 7
    box_features: int = 1024
    mask_size: int = 14
    mask_channels: int = 256
    mask_convolutions: int = 4
    # The number of cells along a side of a ground-truth mask of cells, which covers its object's box.
    mask_crop_size: int = 112
    # The number of points of polygons that a picture has room for, where conventions.mask_targets is
    # "polygons". Where it is not enough, the objects with the most points have cells.
    mask_points: int = 6144
    # The number of bytes of bitmaps that a picture has room for, where conventions.mask_targets is
    # "bitmaps". Where it is not enough, the largest are reduced.
    mask_bytes: int = 131_072
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def validate(self, key: str) -> None:
        for name in ("positive_iou", "positive_fraction", "score_threshold", "nms_iou"):
            require(0 <= getattr(self, name) <= 1, f"{key}.{name}", getattr(self, name), "between 0 and 1")
        for name in ("samples", "box_size", "box_features", "mask_size", "mask_channels", "max_detections"):
            require(getattr(self, name) >= 1, f"{key}.{name}", getattr(self, name), "at least 1")
        require(self.mask_convolutions >= 0, f"{key}.mask_convolutions", self.mask_convolutions, "0 or more")
        require(1 <= self.mask_points <= 2**24, f"{key}.mask_points", self.mask_points, f"between 1 and {2**24:,}")
        require(1024 <= self.mask_bytes <= 2**30, f"{key}.mask_bytes", self.mask_bytes, f"between 1,024 and {2**30:,}")
        require(
            self.mask_crop_size >= 8 and self.mask_crop_size % 8 == 0,
            f"{key}.mask_crop_size",
            self.mask_crop_size,
            "a multiple of 8, because eight cells are packed into a byte",
        )


@dataclasses.dataclass(frozen=True)
class RcnnConfig(AnchoredConfig):
    """The settings of Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870).

    The defaults are Mask R-CNN on a ResNet-50 with a feature pyramid, as in maskrcnn-benchmark.
    """

    kind: Literal["rcnn"] = "rcnn"
    # Whether there is a mask head, as in Mask R-CNN; without it, this is Faster R-CNN.
    masks: bool = True
    # Where regions are pooled from: a feature pyramid ("fpn"); C4, with C5 as the head ("c4"); or
    # C5 at C4's resolution ("dilated_c5").
    neck: Literal["fpn", "c4", "dilated_c5"] = "fpn"
    rpn: RpnConfig = RpnConfig(post_nms_train=2000)
    roi: RoiConfig = RoiConfig()

    resumable_keys: ClassVar[tuple[str, ...]] = (
        *("rpn.pre_nms_test", "rpn.post_nms_test"),
        *("roi.score_threshold", "roi.nms_iou", "roi.max_detections"),
        *("conventions.mask_targets", "roi.mask_points", "roi.mask_bytes"),
    )

    @property
    def has_masks(self) -> bool:
        return self.masks

    @property
    def anchor_levels(self) -> int:
        return 5 if self.neck == "fpn" else 1

    @property
    def last_stage_module(self) -> str:
        return "box_head" if self.neck == "c4" else "backbone"

    def validate(self, key: str) -> None:
        super().validate(key)
        for name in ("rpn", "roi"):
            getattr(self, name).validate(f"{key}.{name}")
