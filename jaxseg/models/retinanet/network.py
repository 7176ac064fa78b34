"""RetinaNet (arXiv:1708.02002), as in maskrcnn-benchmark."""

import functools
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
from jaxseg.models.detector import detector_of
from jaxseg.models.fpn import FPN
from jaxseg.models.layers import conv
from jaxseg.models.retinanet.config import RetinaNetConfig
from jaxseg.ops.boxes import clip_boxes, longer_than
from jaxseg.ops.images import Images
from jaxseg.ops.losses import sigmoid_focal_loss, smooth_l1
from jaxseg.ops.matching import Match
from jaxseg.ops.nms import Kept, labelled_nms
from jaxseg.structures import Batch, Detections, Targets

# The initial probability of every class at every anchor (section 4.1 of the paper). It is small so
# that the many negatives do not dominate the loss of the first steps.
PRIOR_PROBABILITY = 0.01


@struct.dataclass
class RetinaNetOutputs:
    """The raw outputs for `A` anchors, in the order level, y, x, shape. No class is background."""

    class_logits: Float32[Array, "B A C"]
    box_deltas: Float32[Array, "B A 4"]


class LevelOutputs(NamedTuple):
    """The class logits and box deltas of each level's anchors, in the order y, x, shape."""

    class_logits: list[Float32[Array, "B _ C"]]
    box_deltas: list[Float32[Array, "B _ 4"]]


class RetinaNetSums(NamedTuple):
    """The sums of the losses over one image, before they are normalised."""

    classification: Float32[Array, ""]
    box: Float32[Array, ""]
    positives: Int32[Array, ""]


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions with ReLU, for classes and boxes, which all levels share."""

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
    """RetinaNet: a backbone, a pyramid from P3 to P7, and a head that all its levels share."""

    config: RetinaNetConfig

    def setup(self) -> None:
        c = self.config
        self.backbone = build_backbone(c.backbone, c.batch_norm, self.dtype)
        self.fpn = FPN(c.fpn_channels, "retinanet", self.dtype)
        shapes = len(c.anchor_sizes[0]) * len(c.anchor_aspect_ratios)
        self.head = RetinaNetHead(
            channels=c.fpn_channels,
            convolutions=c.head_convolutions,
            num_anchors=shapes,
            num_classes=c.num_classes,
            dtype=self.dtype,
        )

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of P3 to P7."""
        return (8, 16, 32, 64, 128)

    def pyramid(self, images: Images, image_sizes: Int32[Array, "B 2"], *, train: bool) -> Levels:
        """Returns P3 to P7."""
        return self.fpn(self.backbone(self.trunk_input(images, image_sizes), train=train)[1:])

    def __call__(self, images: Images, image_sizes: Int32[Array, "B 2"] | None = None) -> RetinaNetOutputs:
        """Returns the raw outputs.

        Args:
            images: RGB images in 0..255, padded to the network's input size.
            image_sizes: the height and width of each picture within its image; by default,
                pictures fill their images.
        """
        if image_sizes is None:
            image_sizes = whole_sizes(images)
        outputs = self.head(self.pyramid(images, image_sizes, train=False))
        return RetinaNetOutputs(*(jnp.concatenate(values, 1) for values in outputs))

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """See `Detector.losses`; both terms are normalised over the whole batch.

        `class` is the loss of all anchors that are not ignored, `box` that of the positive ones.
        """
        c = self.config
        images, image_sizes, valid = jnp.asarray(batch.images), jnp.asarray(batch.image_sizes), jnp.asarray(batch.valid)
        levels = self.pyramid(images, image_sizes, train=train)
        anchors = np.concatenate(self.anchors(levels, images))
        logits, deltas = (jnp.concatenate(values, 1) for values in self.head(levels))
        one_image = functools.partial(anchor_sums, anchors=anchors, config=c)
        sums = each_image(one_image)(logits, deltas, batch.targets, image_sizes)
        classification, box, positives = (jnp.where(valid, value, 0).sum() for value in sums)
        return {
            # As in the original, the images are counted, too, so that the divisor is not 0.
            "class": classification / jnp.maximum(positives + valid.sum(), 1),
            "box": box / jnp.maximum(c.box_normalizer * positives, 1),
        }

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """See `Detector.detect`."""
        levels = self.pyramid(images, image_sizes, train=False)
        anchors = self.anchors(levels, images)
        one_image = functools.partial(kept_anchors, anchors=anchors, config=self.config)
        boxes, kept = each_image(one_image)(self.head(levels), image_sizes)
        return Detections(boxes=boxes, scores=kept.scores, classes=kept.classes, valid=kept.valid, masks=None)


def anchor_sums(
    logits: Float32[Array, "A C"],
    deltas: Float32[Array, "A 4"],
    targets: Targets,
    image_size: Int32[Array, "2"],
    *,
    anchors: Float32[np.ndarray, "A 4"],
    config: RetinaNetConfig,
) -> RetinaNetSums:
    """Computes the sums of the focal loss and of the box loss over the anchors of one image.

    Args:
        logits: the class logits of the anchors of all levels.
        deltas: the box deltas of the same anchors.
        targets: the ground truth; crowd regions are left out.
        image_size: the height and width of the picture within the network's input.
        anchors: the anchors of all levels, in pixels of the network's input.
        config: the rules of matching and of the losses.
    """
    rules = config.conventions
    labels, objects = match_objects(
        anchors, targets, image_size, positive_iou=config.positive_iou, negative_iou=config.negative_iou, conventions=rules
    )
    positive = (labels == Match.POSITIVE)[:, None]
    own = positive & (jnp.asarray(targets.classes)[objects][:, None] == jnp.arange(config.num_classes))
    focal = sigmoid_focal_loss(logits, own, alpha=config.focal_alpha, gamma=config.focal_gamma)
    truth = rules.region_coder.encode(jnp.asarray(targets.boxes)[objects], anchors)
    # Rows that are not positive may be matched to padding, whose deltas can be infinite.
    box = smooth_l1(deltas, jnp.where(positive, truth, 0.0), config.box_beta)
    return RetinaNetSums(
        classification=jnp.where((labels != Match.IGNORE)[:, None], focal, 0.0).sum(),
        box=jnp.where(positive, box, 0.0).sum(),
        positives=positive.sum(),
    )


def kept_anchors(
    outputs: LevelOutputs,
    image_size: Int32[Array, "2"],
    *,
    anchors: list[Float32[np.ndarray, "_ 4"]],
    config: RetinaNetConfig,
) -> tuple[Float32[Array, "D 4"], Kept]:
    """Selects the detections of one image.

    The best of each level are suppressed within their class, and the best of all classes are kept.

    Args:
        outputs: the outputs for one image.
        image_size: the height and width of the picture within the network's input, to which boxes
            are clipped.
        anchors: the anchors of each level, in pixels of the network's input.
        config: the thresholds and the number of detections.

    Returns:
        The boxes of the detections in pixels of the network's input, and what suppression kept.
    """
    levels = [_best_of_level(*level, image_size, config=config) for level in zip(*outputs, anchors, strict=True)]
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
    *,
    config: RetinaNetConfig,
) -> tuple[Float32[Array, "k 4"], Float32[Array, "k"], Int32[Array, "k"]]:
    """Returns the boxes, scores and classes of a level's best pairs of an anchor and a class."""
    rules, probabilities = config.conventions, jax.nn.sigmoid(logits)
    # The n best pairs belong to the n anchors with the best classes. To select these first saves
    # sorting a list that is longer by the factor `num_classes`.
    _, rows = jax.lax.top_k(probabilities.max(1), min(config.pre_nms, len(anchors)))
    pairs = probabilities[rows].reshape(-1)
    scores, order = jax.lax.top_k(pairs, min(config.pre_nms, pairs.size))
    rows, classes = rows[order // config.num_classes], order % config.num_classes
    boxes = rules.region_coder.decode(deltas[rows], jnp.asarray(anchors)[rows])
    boxes = clip_boxes(boxes, image_size, pixel_offset=rules.pixel_offset)
    return boxes, jnp.where(longer_than(boxes, rules.min_detection_side), scores, 0.0), classes.astype(jnp.int32)
