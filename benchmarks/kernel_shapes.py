"""The real shapes of RoIAlign and of non-maximum suppression: what tests check and benchmarks time, with inputs like a model's.

Sizes come from the configs in `configs/`, so that a preset that changes takes its shapes along. Each shape makes its inputs from a
seed (the batch first, as the operations under `jax.vmap` want them) and has the operation's keyword arguments; `tiny` cuts any of
them down to what an interpreter can run. Boxes lie in clusters with about COCO's spread of sizes: suppression suppresses, and RoIs
share pixels.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg
from jaxseg.ops.roi_align import pyramid_levels

# Root of a box's area over the input's shorter side: the median, and the spread of its logarithm. About 4 in 10 objects of COCO
# are smaller than 32 x 32 pixels, a quarter larger than 96 x 96, in pictures whose shorter side is about 480.
MEDIAN_SIDE, SIDE_SPREAD = 0.09, 1.05
RATIO_SPREAD = 0.4
# Of the boxes around an object: standard deviations of their centres over its size, and of their sizes' logarithm.
CLUSTER_SPREAD = 0.12
# Of a trained detector's anchors or regions, those that a threshold on scores lets through.
LIKELY = 0.02


def boxes_around_objects(
    rng: np.random.Generator, shape: tuple[int, ...], image_size: tuple[int, int], side: float | None = None
) -> np.ndarray:
    """Float32 boxes `[*shape, 4]`, the last axis of `shape` one image's or list's: about 16 around each object, cut at the border.

    Args:
        rng: source of randomness.
        shape: how many lists, and boxes in each.
        image_size: height and width of the network's input.
        side: of all objects, in pixels; None: COCO's spread.
    """
    lists, count = shape[:-1], shape[-1]
    objects = (*lists, max(2, count // 16))
    height, width = image_size
    middle = np.log(MEDIAN_SIDE * min(image_size) if side is None else side)
    log_side = rng.normal(middle, SIDE_SPREAD if side is None else 0.2, objects)
    log_ratio = rng.normal(0.0, RATIO_SPREAD, objects) / 2
    log_size = np.minimum(np.stack([log_side + log_ratio, log_side - log_ratio], -1), np.log((width, height)))
    centers = rng.random((*objects, 2)) * (width, height)
    chosen = rng.integers(objects[-1], size=shape)[..., None]
    log_size = np.take_along_axis(log_size, chosen, -2) + rng.normal(0.0, CLUSTER_SPREAD, (*shape, 2))
    size = np.exp(log_size)
    center = np.take_along_axis(centers, chosen, -2) + size * rng.normal(0.0, CLUSTER_SPREAD, (*shape, 2))
    return np.concatenate([center - size / 2, center + size / 2], -1).clip(0, (width, height) * 2).astype(np.float32)


def with_ties(scores: np.ndarray) -> np.ndarray:
    """Float32 scores of 12 bits: bfloat16 networks give equal ones, too."""
    return (np.round(scores * 4096) / 4096).astype(np.float32)


class RoiAlignInputs(NamedTuple):
    """Features, fine to coarse; boxes in pixels of the input; the index of each one's level; a gradient of the result."""

    features: tuple[jax.Array, ...]
    boxes: np.ndarray
    levels: np.ndarray
    gradient: jax.Array


@dataclasses.dataclass(frozen=True)
class RoiAlignShape:
    """One call of `ops.roi_align`.

    Attributes:
        name: for tables and tests.
        source: the config it comes from.
        batch: images.
        rois: of each image.
        image_size: height and width of the network's input.
        strides: of the levels.
        channels: of the levels.
        output_size: see `roi_align`.
        sampling_ratio: see there.
        aligned: see there.
        training: the gradient counts, too.
    """

    name: str
    source: str
    batch: int
    rois: int
    image_size: tuple[int, int]
    strides: tuple[int, ...]
    channels: int
    output_size: int
    sampling_ratio: int
    aligned: bool
    training: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `roi_align`."""
        names = ("strides", "output_size", "sampling_ratio", "aligned")
        return {name: getattr(self, name) for name in names}

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level."""
        height, width = self.image_size
        return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides)

    def inputs(self, seed: int, dtype: Any = jnp.float32) -> RoiAlignInputs:
        """Noise for features and gradient. The last RoIs are odd: padding, one that reaches out of the image, and one for each level."""
        rng = np.random.default_rng(seed)
        boxes = boxes_around_objects(rng, (self.batch, self.rois), self.image_size)
        height, width = self.image_size
        boxes[:, -1] = 0.0
        boxes[:, -2] = (-0.1 * width, 0.7 * height, 0.2 * width, 1.1 * height)
        levels = np.zeros((self.batch, self.rois), np.int32)
        if len(self.strides) > 1:
            levels = np.asarray(pyramid_levels(boxes), np.int32) - 2
            levels[:, -len(self.strides) :] = np.arange(len(self.strides))
        keys = jax.random.split(jax.random.key(seed), len(self.strides) + 1)
        features = tuple(
            jax.random.normal(key, (self.batch, *size, self.channels), dtype) for key, size in zip(keys, self.level_sizes, strict=False)
        )
        shape = (self.batch, self.rois, self.output_size, self.output_size, self.channels)
        return RoiAlignInputs(features, boxes, levels, jax.random.normal(keys[-1], shape, dtype))

    def tiny(self) -> "RoiAlignShape":
        """The same conventions on four RoIs of two small images."""
        return dataclasses.replace(self, batch=2, rois=4, image_size=(96, 160), channels=128, output_size=2)


class FastNmsInputs(NamedTuple):
    boxes: np.ndarray
    scores: np.ndarray
    candidates: np.ndarray


@dataclasses.dataclass(frozen=True)
class FastNmsShape:
    """One call of `ops.fast_nms`, or of `ops.cross_class_fast_nms`, for each image.

    Attributes:
        name: for tables and tests.
        source: the config it comes from.
        cross_class: all classes at once.
        batch: images.
        priors: of each image.
        classes: without the background.
        top_k: see `fast_nms`.
        max_detections: see there.
        iou_threshold: see there.
        score_threshold: a prior is a candidate when its best class scores more; negative: all are.
    """

    name: str
    source: str
    cross_class: bool
    batch: int
    priors: int
    classes: int
    top_k: int
    max_detections: int
    iou_threshold: float
    score_threshold: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `fast_nms` or `cross_class_fast_nms`."""
        shared = {"iou_threshold": self.iou_threshold, "top_k": self.top_k}
        return shared if self.cross_class else {**shared, "max_detections": self.max_detections}

    def inputs(self, seed: int) -> FastNmsInputs:
        """Boxes `[B, A, 4]` as fractions of the input, scores `[B, C, A]`, candidates `[B, A]`."""
        rng = np.random.default_rng(seed)
        boxes = boxes_around_objects(rng, (self.batch, self.priors), (1, 1))
        scores = with_ties(class_scores(rng, self.batch, self.priors, self.classes, self.score_threshold)).swapaxes(1, 2)
        return FastNmsInputs(boxes, np.ascontiguousarray(scores), scores.max(1) > self.score_threshold)

    def tiny(self) -> "FastNmsShape":
        """The same rule with up to 150 priors in three classes."""
        priors = 130 if self.priors <= self.top_k else 150
        return dataclasses.replace(self, batch=min(self.batch, 2), priors=priors, classes=3, top_k=130, max_detections=20)


class ExactNmsInputs(NamedTuple):
    boxes: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class ExactNmsShape:
    """One call of `ops.exact_nms` for each list, as proposals have it: a list for each level of each image.

    Attributes:
        name: for tables and tests.
        source: the config it comes from.
        batch: images.
        counts: boxes of each level; shorter lists are filled up.
        sides: of each level's anchors, in pixels.
        image_size: height and width of the network's input.
        iou_threshold: see `exact_nms`.
        pixel_offset: see there.
    """

    name: str
    source: str
    batch: int
    counts: tuple[int, ...]
    sides: tuple[float, ...]
    image_size: tuple[int, int]
    iou_threshold: float
    pixel_offset: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `exact_nms`."""
        return {"iou_threshold": self.iou_threshold, "pixel_offset": self.pixel_offset}

    def inputs(self, seed: int) -> ExactNmsInputs:
        """Boxes `[B, levels, n, 4]`, scores and validity `[B, levels, n]`, best first as proposals come."""
        rng = np.random.default_rng(seed)
        rows = max(self.counts)
        boxes = np.stack([boxes_around_objects(rng, (self.batch, rows), self.image_size, 1.2 * side) for side in self.sides], 1)
        scores = -np.sort(-with_ties(rng.beta(0.5, 2.0, boxes.shape[:-1])))
        valid = np.broadcast_to(np.arange(rows) < np.array(self.counts)[:, None], scores.shape)
        return ExactNmsInputs(np.where(valid[..., None], boxes, 0), np.where(valid, scores, -np.inf).astype(np.float32), valid.copy())

    def tiny(self) -> "ExactNmsShape":
        """At most two levels, of which one has fewer boxes."""
        levels = min(2, len(self.sides))
        return dataclasses.replace(self, batch=2, counts=(150, 40)[:levels], sides=self.sides[:levels], image_size=(96, 160))


class ClassNmsInputs(NamedTuple):
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ClassNmsShape:
    """One call of `ops.class_nms` for each image, or of `ops.labelled_nms` where each box has one class.

    Attributes:
        name: for tables and tests.
        source: the config it comes from.
        labelled: each box has one class.
        batch: images.
        boxes: of each image; each of them with all classes, or pairs of a box and a class.
        classes: without the background.
        image_size: height and width of the network's input.
        score_threshold: see `class_nms`.
        iou_threshold: see there.
        max_detections: see there.
        pixel_offset: see there.
    """

    name: str
    source: str
    labelled: bool
    batch: int
    boxes: int
    classes: int
    image_size: tuple[int, int]
    score_threshold: float
    iou_threshold: float
    max_detections: int
    pixel_offset: float

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `class_nms` or `labelled_nms`."""
        names = ("score_threshold", "iou_threshold", "max_detections", "pixel_offset")
        return {name: getattr(self, name) for name in names}

    def inputs(self, seed: int) -> ClassNmsInputs:
        """Boxes `[B, R, C, 4]`, scores `[B, R, C]`; labelled: boxes `[B, R, 4]`, scores and labels `[B, R]`."""
        rng = np.random.default_rng(seed)
        boxes = boxes_around_objects(rng, (self.batch, self.boxes), self.image_size)
        if self.labelled:
            # The best pairs of each level: most of them are likely, and a few classes have most of the boxes.
            labels = (self.classes * rng.random(boxes.shape[:2]) ** 2).astype(np.int32)
            return ClassNmsInputs(boxes, with_ties(rng.beta(0.5, 4.0, boxes.shape[:2])), labels)
        shifts = (
            rng.normal(0.0, 0.02, (*boxes.shape[:2], self.classes, 4))
            * np.sqrt(np.prod(boxes[..., 2:] - boxes[..., :2], -1))[..., None, None]
        )
        height, width = self.image_size
        of_classes = (boxes[:, :, None] + shifts).clip(0, (width, height) * 2).astype(np.float32)
        scores = with_ties(class_scores(rng, self.batch, self.boxes, self.classes, self.score_threshold))
        return ClassNmsInputs(of_classes, scores, None)

    def tiny(self) -> "ClassNmsShape":
        """The same rule with 60 boxes, three classes and ten detections."""
        return dataclasses.replace(self, batch=2, boxes=60, classes=3, image_size=(96, 160), max_detections=10)


def class_scores(rng: np.random.Generator, batch: int, boxes: int, classes: int, threshold: float) -> np.ndarray:
    """Probabilities `[batch, boxes, classes]`: of few boxes one or two classes pass the threshold, and about all of a small list's."""
    share = max(LIKELY, min(1.0, 400 / boxes))
    scores = rng.random((batch, boxes, classes)) ** 4 * max(threshold, 0.0)
    likely = rng.random((batch, boxes)) < share
    for _ in range(2):
        best = rng.integers(classes, size=(batch, boxes, 1))
        np.put_along_axis(scores, best, np.where(likely, rng.beta(0.6, 1.2, (batch, boxes)), 0.0)[..., None], -1)
    return scores


# ---- From the configs ----


@functools.cache
def _config(name: str) -> jaxseg.Config:
    return jaxseg.load_config(f"configs/{name}.py")


def _of_regions(name: str, config: str, batch: int, *, training: bool, masks: bool = False, portrait: bool = False) -> RoiAlignShape:
    """What an R-CNN pools for boxes or for masks."""
    model: Any = _config(config).model
    roi = model.roi
    if masks:
        rois = int(roi.samples * roi.positive_fraction) if training else roi.max_detections
    else:
        rois = roi.samples if training else model.rpn.post_nms_test
    # With C4 the head starts with a stride of 2.
    box_size = 2 * roi.box_size if model.neck == "c4" else roi.box_size
    channels = {"fpn": model.fpn_channels, "c4": 16 * model.backbone.width, "dilated_c5": 32 * model.backbone.width}
    return RoiAlignShape(
        name=name,
        source=config,
        batch=batch,
        rois=rois,
        image_size=model.input.padded_shapes[1 if portrait else 0],
        strides=(4, 8, 16, 32) if model.neck == "fpn" else (16,),
        channels=channels[model.neck],
        output_size=roi.mask_size if masks else box_size,
        sampling_ratio=model.conventions.roi_sampling_ratio,
        aligned=model.conventions.roi_aligned,
        training=training,
    )


def _of_priors(name: str, config: str, batch: int, *, cross_class: bool = False) -> FastNmsShape:
    """Fast NMS of a YOLACT."""
    model: Any = _config(config).model
    rule, levels = model.detection, jaxseg.build_model(_config(config)).level_sizes
    per_cell = len(model.anchor_scales[0]) * len(model.anchor_aspect_ratios)
    return FastNmsShape(
        name=name,
        source=config,
        cross_class=cross_class,
        batch=batch,
        priors=per_cell * sum(height * width for height, width in levels),
        classes=model.num_classes,
        top_k=rule.top_k,
        max_detections=rule.max_detections,
        iou_threshold=rule.iou_threshold,
        score_threshold=rule.score_threshold,
    )


def _of_proposals(name: str, config: str, batch: int, *, training: bool) -> ExactNmsShape:
    """The region proposals of an R-CNN."""
    model: Any = _config(config).model
    image_size = model.input.padded_shapes[0]
    strides = (4, 8, 16, 32, 64) if model.neck == "fpn" else (16,)
    per_cell = len(model.anchor_sizes[0]) * len(model.anchor_aspect_ratios)
    anchors = [per_cell * math.ceil(image_size[0] / stride) * math.ceil(image_size[1] / stride) for stride in strides]
    most = model.rpn.pre_nms_train if training else model.rpn.pre_nms_test
    return ExactNmsShape(
        name=name,
        source=config,
        batch=batch,
        counts=tuple(min(most, count) for count in anchors),
        sides=tuple(sizes[len(sizes) // 2] for sizes in model.anchor_sizes),
        image_size=image_size,
        iou_threshold=model.rpn.nms_iou,
        pixel_offset=model.conventions.pixel_offset,
    )


def _of_detections(name: str, config: str, batch: int) -> ClassNmsShape:
    """The last step of an R-CNN, or of RetinaNet: the best pairs of each level there."""
    model: Any = _config(config).model
    labelled = model.kind == "retinanet"
    rule = model if labelled else model.roi
    return ClassNmsShape(
        name=name,
        source=config,
        labelled=labelled,
        batch=batch,
        boxes=len(model.anchor_sizes) * model.pre_nms if labelled else model.rpn.post_nms_test,
        classes=model.num_classes,
        image_size=model.input.padded_shapes[0],
        score_threshold=rule.score_threshold,
        iou_threshold=rule.nms_iou,
        max_detections=rule.max_detections,
        pixel_offset=model.conventions.pixel_offset,
    )


# 2 x 2 samples a cell, not aligned: maskrcnn-benchmark, torchvision. As many as a cell has pixels, aligned: detectron2, mmdetection.
FIXED, ADAPTIVE, C4, C5 = (
    "mask_rcnn_r50_fpn_1x",
    "mask_rcnn_r50_fpn_3x_detectron2",
    "mask_rcnn_r50_c4_1x",
    "mask_rcnn_r50_dc5_3x_detectron2",
)

ROI_ALIGN_SHAPES = (
    _of_regions("train_boxes", FIXED, 2, training=True),
    _of_regions("train_masks", FIXED, 2, training=True, masks=True),
    _of_regions("train_boxes_adaptive", ADAPTIVE, 2, training=True),
    _of_regions("train_masks_adaptive", ADAPTIVE, 2, training=True, masks=True),
    _of_regions("train_boxes_portrait", FIXED, 2, training=True, portrait=True),
    _of_regions("train_c4", C4, 2, training=True),
    _of_regions("train_dilated_c5", C5, 2, training=True),
    _of_regions("detect_boxes", FIXED, 1, training=False),
    _of_regions("detect_masks", FIXED, 1, training=False, masks=True),
    _of_regions("detect_boxes_adaptive", ADAPTIVE, 1, training=False),
    _of_regions("detect_masks_adaptive", ADAPTIVE, 1, training=False, masks=True),
    _of_regions("detect_boxes_batch8", FIXED, 8, training=False),
    _of_regions("detect_masks_batch8", FIXED, 8, training=False, masks=True),
)

FAST_NMS_SHAPES = (
    # Of the suppression alone: the classes' best boxes are chosen already.
    dataclasses.replace(_of_priors("fast_80x200", "yolact_r101", 1), priors=200, score_threshold=-1.0),
    _of_priors("fast_yolact400", "yolact_im400_r101", 1),
    _of_priors("fast_yolact550", "yolact_r101", 1),
    _of_priors("fast_yolact550_batch8", "yolact_r101", 8),
    _of_priors("fast_yolact700", "yolact_im700_r101", 1),
    _of_priors("cross_yolact550", "yolact_r101", 1, cross_class=True),
    _of_priors("cross_yolact550_batch8", "yolact_r101", 8, cross_class=True),
)

EXACT_NMS_SHAPES = (
    _of_proposals("proposals_train", ADAPTIVE, 2, training=True),
    _of_proposals("proposals_detect", ADAPTIVE, 1, training=False),
    _of_proposals("proposals_detect_batch8", ADAPTIVE, 8, training=False),
    _of_proposals("proposals_train_c5", C5, 2, training=True),
    # Counts pixels inclusively.
    _of_proposals("proposals_detect_inclusive", FIXED, 1, training=False),
)

CLASS_NMS_SHAPES = (
    _of_detections("detections_rcnn", ADAPTIVE, 1),
    _of_detections("detections_rcnn_batch8", ADAPTIVE, 8),
    _of_detections("detections_retinanet", "retinanet_r50_fpn_1x", 1),
    _of_detections("detections_retinanet_batch8", "retinanet_r50_fpn_1x", 8),
)

NmsShape = FastNmsShape | ExactNmsShape | ClassNmsShape
NMS_SHAPES: tuple[NmsShape, ...] = (*FAST_NMS_SHAPES, *EXACT_NMS_SHAPES, *CLASS_NMS_SHAPES)
