"""The details in which the originals of Faster R-CNN, Mask R-CNN and RetinaNet differ."""

import dataclasses
from typing import Literal

from jaxseg.config.values import require
from jaxseg.ops.box_coder import DELTA_WEIGHTS, BoxCoder


@dataclasses.dataclass(frozen=True)
class Conventions:
    """The details in which maskrcnn-benchmark, detectron2, mmdetection and torchvision differ.

    Weights need the conventions that they were trained with.
    """

    # How a picture is resized to the network's input: which library's method, and how the size is
    # rounded.
    resize: Literal["opencv", "pillow", "pillow_truncated", "float"] = "pillow"
    # With 1, x2 and y2 are a box's last pixel, so that its width is x2 - x1 + 1; with 0, its edge.
    pixel_offset: float = 0.0
    # "exact" rounds no anchor; "rounded" rounds their corners, halves to even; "legacy" scales
    # windows with rounded sides, with x2 and y2 as their last pixels, as Detectron does.
    cell_anchors: Literal["exact", "legacy", "rounded"] = "exact"
    # The distance of anchors: the level's stride ("level"), or the input's size divided by the
    # level's size, without the remainder ("measured").
    anchor_strides: Literal["level", "measured"] = "level"
    # Anchors that reach beyond the picture by more than this many pixels do not learn; with a
    # negative value, all anchors learn.
    anchor_border: float = -1.0
    # Whether anchors beyond the picture's own size, rounded up to a multiple of 32, learn, too.
    padding_anchors: bool = True
    # How an object gets an anchor if none overlaps it enough. The anchors that overlap it most
    # become positive: for this object ("best_anchor"), or each for the object that it overlaps most
    # itself ("own_argmax").
    forced_match: Literal["own_argmax", "best_anchor"] = "own_argmax"
    forced_match_iou: float = 0.0
    # Whether the proposals that overlap an object most are matched to it, too, if the overlap is at
    # least roi.positive_iou.
    forced_roi_match: bool = False
    # A box's sides grow to at most 1000 / 16 times its anchor's. If true, they also shrink to at
    # least 16 / 1000 times its anchor's.
    clamp_both_sides: bool = False
    # Whether proposals are ranked by the sigmoid of their score, where many are equal to 1 in
    # float32, instead of by the score itself.
    rank_probabilities: bool = False
    # The number of images that share one quota of proposals in training.
    proposal_group: int = 1
    # Drops proposals with a side of at most this many pixels; a negative value keeps all.
    min_proposal_side: float = 0.0
    # Where the box loss changes from quadratic to linear; 0 gives the L1 loss.
    rpn_box_beta: float = 0.0
    roi_box_beta: float = 0.0
    # What the RPN's losses are divided by: the number of sampled anchors ("sampled"); the same,
    # where an image counts at least one positive and one negative anchor ("sampled_both"); or
    # rpn.samples for each image, however many were sampled ("quota").
    rpn_normalizer: Literal["sampled", "sampled_both", "quota"] = "quota"
    # Whether RoIAlign shifts regions by half a cell to the left and up, so that cells have their
    # values at their centres.
    roi_aligned: bool = True
    # The number of RoIAlign's samples along each side of a bin; 0 takes as many as it has cells.
    roi_sampling_ratio: int = 0
    # Guards against rounding when a box's pyramid level is computed: `level_ratio_epsilon` is added
    # to the ratio of the box's size to 224, `level_epsilon` to the level.
    level_ratio_epsilon: float = 1e-8
    level_epsilon: float = 0.0
    # Drops detections with a side of at most this many pixels before non-maximum suppression; a
    # negative value keeps all.
    min_detection_side: float = 0.0
    # How a mask's targets are made: the object's polygons are drawn over the region ("polygons"); the
    # region is resampled by RoIAlign from the object's bitmap in the input ("bitmaps"), aligned as
    # roi_aligned says; or from a fixed number of cells over the object's box ("cells").
    mask_targets: Literal["cells", "polygons", "bitmaps"] = "polygons"
    # Whether a mask's targets are the fractions of its cells that the object covers; otherwise
    # these are rounded to 0 or 1.
    soft_mask_targets: bool = False
    # How a mask is pasted into the picture: sampled at the box's exact position ("box"), or resized
    # to the box rounded to whole pixels ("integer_box").
    mask_paste: Literal["box", "integer_box"] = "box"

    @property
    def anchor_coder(self) -> BoxCoder:
        """The coder of boxes against the anchors of a region proposal network."""
        return BoxCoder(pixel_offset=self.pixel_offset, clamp_both_sides=self.clamp_both_sides)

    @property
    def region_coder(self) -> BoxCoder:
        """The coder of boxes against regions, and against the anchors of RetinaNet."""
        return BoxCoder(DELTA_WEIGHTS, self.pixel_offset, self.clamp_both_sides)

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
    # The original adds 1e-6 to the ratio of the size to 56.
    level_ratio_epsilon=0.25e-6,
    min_detection_side=-1.0,
    mask_targets="bitmaps",
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
    mask_targets="bitmaps",
    soft_mask_targets=True,
    mask_paste="integer_box",
)
