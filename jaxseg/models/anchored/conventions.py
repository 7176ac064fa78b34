"""Where the originals of Faster R-CNN, Mask R-CNN and RetinaNet disagree with each other."""

import dataclasses
from typing import Literal

from jaxseg.config.values import require


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
