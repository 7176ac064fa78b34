"""The shapes of non-maximum suppression: Fast NMS, and exact NMS of lists and within classes."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

import jaxseg
from model_shapes.inputs import boxes_around_objects, class_scores, with_ties
from model_shapes.presets import ADAPTIVE_SAMPLES, DILATED_C5, FIXED_SAMPLES, preset

# ---- Fast NMS ----


class FastNmsInputs(NamedTuple):
    """Boxes `[B, A, 4]` as fractions of the input, scores `[B, C, A]` and candidates `[B, A]`."""

    boxes: np.ndarray
    scores: np.ndarray
    candidates: np.ndarray


@dataclasses.dataclass(frozen=True)
class FastNmsShape:
    """One call of `fast_nms`, or of `cross_class_fast_nms`, for each image.

    Attributes:
        name: the name in tables and tests.
        source: the preset that the shape comes from.
        cross_class: whether suppression is over all classes at once.
        batch: the number of images.
        priors: the number of priors of each image.
        classes: the number of classes without the background.
        top_k: see `fast_nms`.
        max_detections: see `fast_nms`.
        iou_threshold: see `fast_nms`.
        score_threshold: a prior is a candidate if the score of its best class exceeds this number;
            with a negative value all priors are candidates.
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
        """The keyword arguments of `fast_nms` or `cross_class_fast_nms`."""
        shared = {"iou_threshold": self.iou_threshold, "top_k": self.top_k}
        return shared if self.cross_class else {**shared, "max_detections": self.max_detections}

    def inputs(self, seed: int) -> FastNmsInputs:
        """Makes boxes, scores and candidates of a batch."""
        rng = np.random.default_rng(seed)
        boxes = boxes_around_objects(rng, (self.batch, self.priors), (1, 1))
        scores = with_ties(class_scores(rng, (self.batch, self.priors, self.classes), self.score_threshold)).swapaxes(1, 2)
        return FastNmsInputs(boxes, np.ascontiguousarray(scores), scores.max(1) > self.score_threshold)

    def tiny(self) -> "FastNmsShape":
        """Returns a shape with the same rule and up to 150 priors in three classes."""
        priors = 130 if self.priors <= self.top_k else 150
        return dataclasses.replace(self, batch=min(self.batch, 2), priors=priors, classes=3, top_k=130, max_detections=20)


def _of_priors(name: str, source: str, batch: int, *, cross_class: bool = False) -> FastNmsShape:
    """Makes the shape of Fast NMS in a YOLACT."""
    model: Any = preset(source).model
    detector: Any = jaxseg.build_model(preset(source))
    rule = model.detection
    per_cell = len(model.anchor_scales[0]) * len(model.anchor_aspect_ratios)
    return FastNmsShape(
        name=name,
        source=source,
        cross_class=cross_class,
        batch=batch,
        priors=per_cell * sum(height * width for height, width in detector.level_sizes),
        classes=model.num_classes,
        top_k=rule.top_k,
        max_detections=rule.max_detections,
        iou_threshold=rule.iou_threshold,
        score_threshold=rule.score_threshold,
    )


FAST_NMS_SHAPES = (
    # In this shape there is only suppression, because the best boxes are already selected.
    dataclasses.replace(_of_priors("fast_80x200", "yolact_r101", 1), priors=200, score_threshold=-1.0),
    _of_priors("fast_yolact400", "yolact_im400_r101", 1),
    _of_priors("fast_yolact550", "yolact_r101", 1),
    _of_priors("fast_yolact550_batch8", "yolact_r101", 8),
    _of_priors("fast_yolact700", "yolact_im700_r101", 1),
    _of_priors("cross_yolact550", "yolact_r101", 1, cross_class=True),
    _of_priors("cross_yolact550_batch8", "yolact_r101", 8, cross_class=True),
)

# ---- Exact NMS of lists ----


class ExactNmsInputs(NamedTuple):
    """Boxes `[B, levels, n, 4]`, scores and validity `[B, levels, n]`, the best first."""

    boxes: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class ExactNmsShape:
    """One call of `exact_nms` for each list. Proposals have a list for each level of each image.

    Attributes:
        name: the name in tables and tests.
        source: the preset that the shape comes from.
        batch: the number of images.
        counts: the number of boxes of each level; shorter lists are padded.
        sides: the side of each level's anchors in pixels.
        input_size: the height and width of the network's input.
        iou_threshold: see `exact_nms`.
        pixel_offset: see `exact_nms`.
    """

    name: str
    source: str
    batch: int
    counts: tuple[int, ...]
    sides: tuple[float, ...]
    input_size: tuple[int, int]
    iou_threshold: float
    pixel_offset: float

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `exact_nms`."""
        return {"iou_threshold": self.iou_threshold, "pixel_offset": self.pixel_offset}

    def inputs(self, seed: int) -> ExactNmsInputs:
        """Makes boxes, scores and validity of a batch."""
        rng = np.random.default_rng(seed)
        rows = max(self.counts)
        boxes = np.stack([boxes_around_objects(rng, (self.batch, rows), self.input_size, 1.2 * side) for side in self.sides], 1)
        scores = -np.sort(-with_ties(rng.beta(0.5, 2.0, boxes.shape[:-1])))
        valid = np.broadcast_to(np.arange(rows) < np.array(self.counts)[:, None], scores.shape)
        return ExactNmsInputs(np.where(valid[..., None], boxes, 0), np.where(valid, scores, -np.inf).astype(np.float32), valid.copy())

    def tiny(self) -> "ExactNmsShape":
        """Returns a shape with the same rule for at most two levels; one has fewer boxes."""
        levels = min(2, len(self.sides))
        return dataclasses.replace(self, batch=2, counts=(150, 40)[:levels], sides=self.sides[:levels], input_size=(96, 160))


def _of_proposals(name: str, source: str, batch: int, *, training: bool) -> ExactNmsShape:
    """Makes the shape of the proposals of an R-CNN."""
    model: Any = preset(source).model
    input_size = model.input.padded_shapes[0]
    strides = (4, 8, 16, 32, 64) if model.neck == "fpn" else (16,)
    per_cell = len(model.anchor_sizes[0]) * len(model.anchor_aspect_ratios)
    anchors = [per_cell * math.ceil(input_size[0] / stride) * math.ceil(input_size[1] / stride) for stride in strides]
    most = model.rpn.pre_nms_train if training else model.rpn.pre_nms_test
    return ExactNmsShape(
        name=name,
        source=source,
        batch=batch,
        counts=tuple(min(most, count) for count in anchors),
        sides=tuple(sizes[len(sizes) // 2] for sizes in model.anchor_sizes),
        input_size=input_size,
        iou_threshold=model.rpn.nms_iou,
        pixel_offset=model.conventions.pixel_offset,
    )


EXACT_NMS_SHAPES = (
    _of_proposals("proposals_train", ADAPTIVE_SAMPLES, 2, training=True),
    _of_proposals("proposals_detect", ADAPTIVE_SAMPLES, 1, training=False),
    _of_proposals("proposals_detect_batch8", ADAPTIVE_SAMPLES, 8, training=False),
    _of_proposals("proposals_train_c5", DILATED_C5, 2, training=True),
    # In this shape, boxes end in their last pixel.
    _of_proposals("proposals_detect_inclusive", FIXED_SAMPLES, 1, training=False),
)

# ---- Exact NMS within classes ----


class ClassNmsInputs(NamedTuple):
    """Boxes `[B, R, C, 4]`, scores `[B, R, C]`; or boxes `[B, R, 4]`, scores, labels `[B, R]`."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class ClassNmsShape:
    """One call of `class_nms` for each image, or of `labelled_nms` where each box has one class.

    Attributes:
        name: the name in tables and tests.
        source: the preset that the shape comes from.
        labelled: whether each box has one class.
        batch: the number of images.
        boxes: the number of boxes of each image, each with all classes or with one.
        classes: the number of classes without the background.
        input_size: the height and width of the network's input.
        score_threshold: see `class_nms`.
        iou_threshold: see `class_nms`.
        max_detections: see `class_nms`.
        pixel_offset: see `class_nms`.
    """

    name: str
    source: str
    labelled: bool
    batch: int
    boxes: int
    classes: int
    input_size: tuple[int, int]
    score_threshold: float
    iou_threshold: float
    max_detections: int
    pixel_offset: float

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `class_nms` or `labelled_nms`."""
        names = ("score_threshold", "iou_threshold", "max_detections", "pixel_offset")
        return {name: getattr(self, name) for name in names}

    def inputs(self, seed: int) -> ClassNmsInputs:
        """Makes boxes, scores and, if each box has one class, labels of a batch."""
        rng = np.random.default_rng(seed)
        boxes = boxes_around_objects(rng, (self.batch, self.boxes), self.input_size)
        if self.labelled:
            # These are the best pairs of each level, so most scores are high, and most boxes belong
            # to a few classes.
            labels = (self.classes * rng.random(boxes.shape[:2]) ** 2).astype(np.int32)
            return ClassNmsInputs(boxes, with_ties(rng.beta(0.5, 4.0, boxes.shape[:2])), labels)
        shifts = (
            rng.normal(0.0, 0.02, (*boxes.shape[:2], self.classes, 4))
            * np.sqrt(np.prod(boxes[..., 2:] - boxes[..., :2], -1))[..., None, None]
        )
        height, width = self.input_size
        of_classes = (boxes[:, :, None] + shifts).clip(0, (width, height) * 2).astype(np.float32)
        scores = with_ties(class_scores(rng, (self.batch, self.boxes, self.classes), self.score_threshold))
        return ClassNmsInputs(of_classes, scores, None)

    def tiny(self) -> "ClassNmsShape":
        """Returns a shape with the same rule, 60 boxes, three classes and ten detections."""
        return dataclasses.replace(self, batch=2, boxes=60, classes=3, input_size=(96, 160), max_detections=10)


def _of_detections(name: str, source: str, batch: int) -> ClassNmsShape:
    """Makes the shape of the last step of an R-CNN, or of RetinaNet.

    RetinaNet's input is the best pairs of a box and a class of each level.
    """
    model: Any = preset(source).model
    labelled = model.kind == "retinanet"
    rule = model if labelled else model.roi
    return ClassNmsShape(
        name=name,
        source=source,
        labelled=labelled,
        batch=batch,
        boxes=len(model.anchor_sizes) * model.pre_nms if labelled else model.rpn.post_nms_test,
        classes=model.num_classes,
        input_size=model.input.padded_shapes[0],
        score_threshold=rule.score_threshold,
        iou_threshold=rule.nms_iou,
        max_detections=rule.max_detections,
        pixel_offset=model.conventions.pixel_offset,
    )


CLASS_NMS_SHAPES = (
    _of_detections("detections_rcnn", ADAPTIVE_SAMPLES, 1),
    _of_detections("detections_rcnn_batch8", ADAPTIVE_SAMPLES, 8),
    _of_detections("detections_retinanet", "retinanet_r50_fpn_1x", 1),
    _of_detections("detections_retinanet_batch8", "retinanet_r50_fpn_1x", 8),
)

NmsShape = FastNmsShape | ExactNmsShape | ClassNmsShape
NMS_SHAPES: tuple[NmsShape, ...] = (*FAST_NMS_SHAPES, *EXACT_NMS_SHAPES, *CLASS_NMS_SHAPES)
