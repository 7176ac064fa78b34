"""RetinaNet (arXiv:1708.02002), as maskrcnn-benchmark trains and runs it."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float32, Int32

from jaxseg.devices import each_image
from jaxseg.models.anchored.detector import AnchoredDetector, Levels, whole_sizes
from jaxseg.models.anchored.matching import match_objects
from jaxseg.models.backbones.build import build_backbone
from jaxseg.models.detector import Images, detector_of
from jaxseg.models.fpn import FPN
from jaxseg.models.layers import conv
from jaxseg.models.retinanet.config import RetinaNetConfig
from jaxseg.ops.boxes import DELTA_WEIGHTS, clip_boxes, decode_deltas, encode_deltas, longer_than
from jaxseg.ops.losses import sigmoid_focal_loss, smooth_l1
from jaxseg.ops.matching import Match
from jaxseg.ops.nms import Kept, labelled_nms
from jaxseg.structures import Batch, Detections, Targets

# Every class of every anchor starts with this probability, or the many negatives would drown the first steps.
PRIOR_PROBABILITY = 0.01


@struct.dataclass
class RetinaNetOutputs:
    """Raw outputs of `A` anchors in the order level, y, x, shape; there is no background class."""

    class_logits: Float32[Array, "B A C"]
    box_deltas: Float32[Array, "B A 4"]


class LevelOutputs(NamedTuple):
    """Of each pyramid level: class logits and four deltas for each of its anchors, in the order y, x, shape."""

    class_logits: list[Float32[Array, "B _ C"]]
    box_deltas: list[Float32[Array, "B _ 4"]]


class RetinaNetSums(NamedTuple):
    """One image's share of the losses, before any normaliser."""

    classification: Float32[Array, ""]
    box: Float32[Array, ""]
    positives: Int32[Array, ""]


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions with ReLU, one for classes and one for boxes, shared by all levels."""

    channels: int
    convolutions: int
    num_anchors: int
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, levels: Levels) -> LevelOutputs:
        init = nn.initializers.normal(0.01)
        prior = nn.initializers.constant(-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))

        def tower(name: str, values: int, bias_init: Any) -> list[Float32[Array, "B _ _"]]:
            hidden = [conv(self.channels, 3, init=init, dtype=self.dtype, name=f"{name}_conv{i + 1}") for i in range(self.convolutions)]
            output = conv(self.num_anchors * values, 3, init=init, bias_init=bias_init, dtype=self.dtype, name=name)
            outputs = []
            for x in levels:
                for layer in hidden:
                    x = nn.relu(layer(x))
                outputs.append(output(x).astype(jnp.float32).reshape(len(x), -1, values))
            return outputs

        return LevelOutputs(tower("class", self.num_classes, prior), tower("box", 4, nn.initializers.zeros))


@detector_of(RetinaNetConfig)
class RetinaNet(AnchoredDetector):
    """Trunk, pyramid from P3 to P7, and a head that classifies and moves the anchors of every cell."""

    config: RetinaNetConfig

    def setup(self) -> None:
        c = self.config
        self.backbone = build_backbone(c.backbone, c.batch_norm, self.dtype)
        self.fpn = FPN(c.fpn_channels, "retinanet", self.dtype)
        shapes = len(c.anchor_sizes[0]) * len(c.anchor_aspect_ratios)
        self.head = RetinaNetHead(c.fpn_channels, c.head_convolutions, shapes, c.num_classes, self.dtype)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of P3 to P7."""
        return (8, 16, 32, 64, 128)

    def pyramid(self, images: Images, image_sizes: Int32[Array, "B 2"], *, train: bool) -> Levels:
        """P3 to P7."""
        return self.fpn(self.backbone(self.trunk_input(images, image_sizes), train=train)[1:])

    def __call__(self, images: Images, image_sizes: Int32[Array, "B 2"] | None = None) -> RetinaNetOutputs:
        """Raw outputs.

        Args:
            images: RGB 0..255, padded to network size.
            image_sizes: height and width of each picture within it; None: all of it.
        """
        if image_sizes is None:
            image_sizes = whole_sizes(images)
        outputs = self.head(self.pyramid(images, image_sizes, train=False))
        return RetinaNetOutputs(*(jnp.concatenate(values, 1) for values in outputs))

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """`class` over all anchors that are not ignored, and `box` over the positive ones; each batch shares one normaliser."""
        c = self.config
        images, image_sizes, valid = jnp.asarray(batch.images), jnp.asarray(batch.image_sizes), jnp.asarray(batch.valid)
        levels = self.pyramid(images, image_sizes, train=train)
        anchors = np.concatenate(self.anchors(levels, images))
        logits, deltas = (jnp.concatenate(values, 1) for values in self.head(levels))
        sums = each_image(lambda o, d, t, s: anchor_sums(o, d, anchors, t, s, c))(logits, deltas, batch.targets, image_sizes)
        classification, box, positives = (jnp.where(valid, value, 0).sum() for value in sums)
        return {
            # The images are counted, too, so that there is always something to divide by.
            "class": classification / jnp.maximum(positives + valid.sum(), 1),
            "box": box / jnp.maximum(c.box_normalizer * positives, 1),
        }

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """See `Detector.detect`."""
        levels = self.pyramid(images, image_sizes, train=False)
        anchors = self.anchors(levels, images)
        boxes, kept = each_image(lambda o, s: kept_anchors(o, anchors, s, self.config))(self.head(levels), image_sizes)
        return Detections(boxes, kept.scores, kept.classes, kept.valid, None)


def anchor_sums(
    logits: Float32[Array, "A C"],
    deltas: Float32[Array, "A 4"],
    anchors: Float32[np.ndarray, "A 4"],
    targets: Targets,
    image_size: Int32[Array, "2"],
    config: RetinaNetConfig,
) -> RetinaNetSums:
    """What the anchors of one image learn: the focal loss of their classes, and of the positive ones the deltas.

    Args:
        logits: of all levels' anchors.
        deltas: of the same.
        anchors: the same, in pixels of the network's input.
        targets: ground truth; crowds do not count.
        image_size: height and width of the picture within the network's input.
        config: which anchors learn, and how.
    """
    rules = config.conventions
    labels, objects = match_objects(anchors, targets, image_size, config.positive_iou, config.negative_iou, rules)
    positive = (labels == Match.POSITIVE)[:, None]
    own = positive & (jnp.asarray(targets.classes)[objects][:, None] == jnp.arange(config.num_classes))
    focal = sigmoid_focal_loss(logits, own, alpha=config.focal_alpha, gamma=config.focal_gamma)
    truth = encode_deltas(jnp.asarray(targets.boxes)[objects], anchors, weights=DELTA_WEIGHTS, pixel_offset=rules.pixel_offset)
    # Rows that are not positive may have been matched to padding.
    box = smooth_l1(deltas, jnp.where(positive, truth, 0.0), config.box_beta)
    return RetinaNetSums(
        classification=jnp.where((labels != Match.IGNORE)[:, None], focal, 0.0).sum(),
        box=jnp.where(positive, box, 0.0).sum(),
        positives=positive.sum(),
    )


def kept_anchors(
    outputs: LevelOutputs, anchors: list[Float32[np.ndarray, "_ 4"]], image_size: Int32[Array, "2"], config: RetinaNetConfig
) -> tuple[Float32[Array, "D 4"], Kept]:
    """The detections of one image: the best of each level, suppressed within their class, the best of all classes.

    Args:
        outputs: of one image.
        anchors: of each level.
        image_size: height and width of the picture within the network's input; boxes are clipped to it.
        config: how many, and from which score on.
    """
    levels = [_best_of_level(*level, image_size, config) for level in zip(*outputs, anchors, strict=True)]
    boxes, scores, classes = (jnp.concatenate(values) for values in zip(*levels, strict=True))
    kept = labelled_nms(
        boxes,
        scores,
        classes,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms_iou,
        max_detections=config.max_detections,
        pixel_offset=config.conventions.pixel_offset,
        implementation=config.implementation,
    )
    return jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0), kept


def _best_of_level(
    logits: Float32[Array, "a C"],
    deltas: Float32[Array, "a 4"],
    anchors: Float32[np.ndarray, "a 4"],
    image_size: Int32[Array, "2"],
    config: RetinaNetConfig,
) -> tuple[Float32[Array, "k 4"], Float32[Array, "k"], Int32[Array, "k"]]:
    """Boxes, scores and classes of the best pairs of an anchor and a class."""
    rules, probabilities = config.conventions, jax.nn.sigmoid(logits)
    # The best n pairs are all of the n anchors with the best class: this sorts a list that is shorter by the number of classes.
    _, rows = jax.lax.top_k(probabilities.max(1), min(config.pre_nms, len(anchors)))
    pairs = probabilities[rows].reshape(-1)
    scores, order = jax.lax.top_k(pairs, min(config.pre_nms, pairs.size))
    rows, classes = rows[order // config.num_classes], order % config.num_classes
    boxes = decode_deltas(
        deltas[rows],
        jnp.asarray(anchors)[rows],
        weights=DELTA_WEIGHTS,
        pixel_offset=rules.pixel_offset,
        clamp_both_sides=rules.clamp_both_sides,
    )
    boxes = clip_boxes(boxes, image_size, pixel_offset=rules.pixel_offset)
    return boxes, jnp.where(longer_than(boxes, rules.min_detection_side), scores, 0.0), classes.astype(jnp.int32)
