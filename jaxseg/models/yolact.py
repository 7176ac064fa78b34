"""YOLACT (arXiv:1904.02689): prototypes and coefficients, one stage."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxseg.config import LossConfig, YolactConfig
from jaxseg.devices import each_image
from jaxseg.models.backbones.build import build_backbone
from jaxseg.models.detector import Detector, Images, in_frozen_stages, is_norm, normalize_images, resize_bilinear
from jaxseg.models.fpn import FPN
from jaxseg.models.layers import conv
from jaxseg.ops.anchors import yolact_anchors
from jaxseg.ops.boxes import centers_to_corners, decode_boxes, encode_boxes
from jaxseg.ops.losses import binary_cross_entropy
from jaxseg.ops.masks import assemble_masks, box_mask, unpack_bits
from jaxseg.ops.matching import Match, match_priors
from jaxseg.ops.nms import Kept, class_nms, cross_class_fast_nms, fast_nms
from jaxseg.ops.sampling import choose, hardest
from jaxseg.structures import Batch, Detections, InputSpec, Targets


@struct.dataclass
class YolactOutputs:
    """Raw outputs; `A` anchors in the order level, y, x, shape; the background is the first class logit.

    `mask_coefficients` have passed their tanh, `prototypes` their ReLU; `segmentation_logits` exist in training only.
    """

    box_deltas: Float32[Array, "*B A 4"]
    class_logits: Float32[Array, "*B A C1"]
    mask_coefficients: Float32[Array, "*B A K"]
    prototypes: Float32[Array, "*B h w K"]
    segmentation_logits: Float32[Array, "*B hs ws C"] | None


class LossSums(NamedTuple):
    """One image's share of the batch's losses, before any weight and normaliser."""

    box: Float32[Array, ""]
    classification: Float32[Array, ""]
    mask: Float32[Array, ""]
    semantic: Float32[Array, ""]
    positives: Float32[Array, ""]


class Prototypes(nn.Module):
    """ProtoNet (figure 3 of the paper): P3 to `K` prototypes at twice its resolution."""

    channels: int
    num_prototypes: int
    dtype: Any

    @nn.compact
    def __call__(self, p3: Float[Array, "B h w c"]) -> Float32[Array, "B H W K"]:
        x = p3
        for i in range(3):
            x = nn.relu(conv(self.channels, 3, dtype=self.dtype, name=f"conv{i + 1}")(x))
        x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
        x = nn.relu(conv(self.channels, 3, dtype=self.dtype, name="conv4")(x))
        return nn.relu(conv(self.num_prototypes, 1, dtype=self.dtype, name="output")(x)).astype(jnp.float32)


class PredictionHead(nn.Module):
    """The head that all pyramid levels share (figure 4 of the paper): box deltas, class logits, mask coefficients."""

    channels: int
    num_anchors: int
    num_classes: int
    num_prototypes: int
    dtype: Any

    @nn.compact
    def __call__(self, level: Float[Array, "B h w c"]) -> tuple[Array, Array, Array]:
        x = nn.relu(conv(self.channels, 3, dtype=self.dtype, name="trunk")(level))

        def branch(name: str, values: int) -> Float32[Array, "B a values"]:
            y = conv(self.num_anchors * values, 3, dtype=self.dtype, name=name)(x)
            return y.astype(jnp.float32).reshape(y.shape[0], -1, values)

        return branch("box", 4), branch("class", self.num_classes + 1), jnp.tanh(branch("mask", self.num_prototypes))


class Yolact(Detector):
    """Backbone, feature pyramid, prototypes, shared head; a semantic head that exists in training only.

    Attributes:
        config: the model's part of the configuration.
        freeze_batch_norm: keep the running statistics, scales and biases of all batch norms as they are.
        dtype: of the convolutions.
    """

    config: YolactConfig
    freeze_batch_norm: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.backbone = build_backbone(c.backbone, "frozen" if self.freeze_batch_norm else "train", self.dtype)
        self.fpn = FPN(c.fpn_channels, "yolact", self.dtype)
        self.prototypes = Prototypes(c.prototype_channels, c.num_prototypes, self.dtype)
        self.head = PredictionHead(
            c.head_channels, len(c.anchor_scales[0]) * len(c.anchor_aspect_ratios), c.num_classes, c.num_prototypes, self.dtype
        )
        self.semantic_head = conv(c.num_classes, 1, dtype=self.dtype)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width of P3 to P7: each stride of 2 rounds up."""
        side, sides = self.config.image_size, []
        for _ in range(7):
            side = (side + 1) // 2
            sides.append(side)
        return [(side, side) for side in sides[2:]]

    @property
    def input_spec(self) -> InputSpec:
        side, p3 = self.config.image_size, self.level_sizes[0][0]
        return InputSpec(((side, side),), (2 * p3, 2 * p3), (p3, p3), self.config.num_classes)

    def anchors(self) -> Float32[Array, "A 4"]:
        """`cx, cy, w, h` as fractions of the input.

        Boxes are matched and coded in this unit, the original's: many priors overlap an object equally, and rounding
        decides which of them it gets.
        """
        c = self.config
        return jnp.asarray(yolact_anchors(c.image_size, self.level_sizes, c.anchor_scales, c.anchor_aspect_ratios, square=c.square_anchors))

    def __call__(self, images: Images, *, train: bool = False, semantic: bool = False) -> YolactOutputs:
        """Raw outputs.

        Args:
            images: RGB 0..255 at network size.
            train: batch norm uses and updates the batch's statistics (unless frozen).
            semantic: run the semantic head, too.
        """
        expected = (self.config.image_size, self.config.image_size, 3)
        if images.shape[1:] != expected:
            raise ValueError(
                f"YOLACT at {expected[0]} px wants images of shape [B, {expected[0]}, {expected[1]}, 3]; these are {images.shape}."
            )
        backbone = self.config.backbone
        x = normalize_images(images, backbone.pixel_mean, backbone.pixel_std, self.dtype)
        c3, c4, c5 = self.backbone(x, train=train)[-3:]
        levels = self.fpn((c3, c4, c5))
        boxes, classes, coefficients = zip(*map(self.head, levels), strict=True)
        return YolactOutputs(
            box_deltas=jnp.concatenate(boxes, 1),
            class_logits=jnp.concatenate(classes, 1),
            mask_coefficients=jnp.concatenate(coefficients, 1),
            prototypes=self.prototypes(levels[0]),
            segmentation_logits=self.semantic_head(levels[0]).astype(jnp.float32) if semantic else None,
        )

    def initialize(self, images: Images) -> YolactOutputs:
        """See `Detector.initialize`."""
        return self(images, semantic=True)

    # ---- Training ----

    def learns(self, path: tuple[str, ...]) -> bool:
        """All but frozen batch norms and frozen stages."""
        return not (self.freeze_batch_norm and is_norm(path)) and not in_frozen_stages(path, self.config.backbone.frozen_stages)

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """`box`, `class`, `mask` over the batch's positives, `semantic` over its images (B, C, M, S of the original)."""
        outputs = self(jnp.asarray(batch.images), train=train, semantic=True)
        priorities = jax.random.uniform(self.make_rng("sampling"), outputs.class_logits.shape[:2])
        sums = each_image(lambda o, t, p: image_losses(o, t, self.anchors(), p, self.input_spec, self.config.losses))(
            outputs, batch.targets, priorities
        )
        sums = jax.tree.map(lambda x: jnp.where(batch.valid, x, 0.0).sum(), sums)
        return weighted_losses(sums, jnp.maximum(batch.valid.sum(), 1), self.config.losses)

    # ---- Detection ----

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """See `Detector.detect`. YOLACT stretches every picture to its input, so `image_sizes` do not matter here."""
        del image_sizes
        outputs = self(images)
        return each_image(lambda o: image_detections(o, self.anchors(), self.config))(outputs)


def _corners(size: tuple[int, int]) -> Float32[Array, "4"]:
    """What turns corners in fractions into pixels of a map of this height and width."""
    return jnp.array([size[1], size[0], size[1], size[0]], jnp.float32)


def image_losses(
    outputs: YolactOutputs,
    targets: Targets,
    anchors: Float32[Array, "A 4"],
    priorities: Float32[Array, "A"],
    spec: InputSpec,
    config: LossConfig,
) -> LossSums:
    """Unweighted sums over one image.

    Args:
        outputs: of one image, with `segmentation_logits`.
        targets: of the same image.
        anchors: `cx, cy, w, h` as fractions of the input.
        priorities: in 0..1; when there are more positives than `max_mask_positives`, the largest learn masks.
        spec: sizes of the input and the masks.
        config: rules.
    """
    assert targets.semantic is not None
    assert spec.semantic_size is not None
    boxes = jnp.asarray(targets.boxes) / _corners(spec.image_sizes[0])
    labels, indices = match_priors(
        centers_to_corners(anchors),
        boxes,
        targets.valid & ~targets.crowd,
        targets.valid & targets.crowd,
        positive_iou=config.positive_iou,
        negative_iou=config.negative_iou,
        crowd_overlap=config.crowd_overlap,
    )
    positive = labels == Match.POSITIVE
    return LossSums(
        box=_box_loss(outputs.box_deltas, boxes[indices], anchors, positive),
        classification=_class_loss(outputs.class_logits, jnp.where(positive, targets.classes[indices] + 1, 0), labels, config),
        mask=_mask_loss(outputs, targets, boxes, indices, positive, priorities, spec, config.max_mask_positives),
        semantic=optax.sigmoid_binary_cross_entropy(
            outputs.segmentation_logits, jnp.moveaxis(unpack_bits(targets.semantic, spec.semantic_size[1]), 0, -1).astype(jnp.float32)
        ).sum()
        / (spec.semantic_size[0] * spec.semantic_size[1]),
        positives=positive.sum().astype(jnp.float32),
    )


def weighted_losses(sums: LossSums, images: Int32[Array, ""], config: LossConfig) -> dict[str, Float32[Array, ""]]:
    """The batch's losses from its sums. Without positives there is nothing to divide, where the original divides by 0."""
    positives = jnp.maximum(sums.positives, 1.0)
    return {
        "box": config.box_weight * sums.box / positives,
        "class": config.class_weight * sums.classification / positives,
        "mask": config.mask_weight * sums.mask / positives,
        "semantic": config.semantic_weight * sums.semantic / images,
    }


def _box_loss(
    deltas: Float32[Array, "A 4"], boxes: Float32[Array, "A 4"], anchors: Float32[Array, "A 4"], positive: Bool[Array, "A"]
) -> Float32[Array, ""]:
    """Smooth L1 over the positives."""
    # Rows that are not positive may have been matched to padding, whose logarithm is infinite.
    target = jnp.where(positive[:, None], encode_boxes(boxes, anchors), 0.0)
    return jnp.where(positive[:, None], optax.huber_loss(deltas, target), 0.0).sum()


def mined_negatives(logits: Float32[Array, "A C1"], labels: Int32[Array, "A"], config: LossConfig) -> Bool[Array, "A"]:
    """Hard negatives: those whose background is least likely, three for each positive."""
    positives = (labels == Match.POSITIVE).sum()
    count = jnp.where(positives > 0, config.negatives_per_positive * positives, config.negatives_without_positives)
    difficulty = jax.nn.logsumexp(logits, -1) - logits[:, 0]
    return hardest(jax.lax.stop_gradient(difficulty), labels == Match.NEGATIVE, jnp.minimum(count, labels.size - 1))


def _class_loss(
    logits: Float32[Array, "A C1"], classes: Int32[Array, "A"], labels: Int32[Array, "A"], config: LossConfig
) -> Float32[Array, ""]:
    """Cross entropy over the positives and the mined negatives."""
    learns = (labels == Match.POSITIVE) | mined_negatives(logits, labels, config)
    return jnp.where(learns, optax.softmax_cross_entropy_with_integer_labels(logits, classes), 0.0).sum()


def _mask_loss(
    outputs: YolactOutputs,
    targets: Targets,
    boxes: Float32[Array, "N 4"],
    indices: Int32[Array, "A"],
    positive: Bool[Array, "A"],
    priorities: Float32[Array, "A"],
    spec: InputSpec,
    max_positives: int,
) -> Float32[Array, ""]:
    """Binary cross entropy of the assembled masks, cropped by the ground-truth boxes, per pixel of the box's area.

    Ground truth outside the crop counts with the floor of the logarithm, 100 a pixel, as in the original.
    """
    assert targets.masks is not None
    assert spec.mask_size is not None
    chosen, counts = choose(positive, priorities, min(max_positives, positive.size))
    objects = indices[chosen]
    height, width = spec.mask_size
    mask_boxes = boxes[objects] * _corners((height, width))
    truth = unpack_bits(targets.masks, width)[objects]
    predicted = assemble_masks(outputs.prototypes, outputs.mask_coefficients[chosen])
    predicted = jnp.where(box_mask(mask_boxes, (height, width)), predicted, 0.0)
    per_object = binary_cross_entropy(predicted, truth).sum((1, 2))
    box_size = mask_boxes[:, 2:] - mask_boxes[:, :2]
    per_object = jnp.where(counts, per_object / jnp.where(counts, box_size[:, 0] * box_size[:, 1], 1.0), 0.0)
    # A sample stands for all positives.
    return per_object.sum() * positive.sum() / jnp.maximum(counts.sum(), 1)


def image_detections(outputs: YolactOutputs, anchors: Float32[Array, "A 4"], config: YolactConfig) -> Detections:
    """From the raw outputs of one image to its detections, masks cropped by the detected boxes."""
    boxes = decode_boxes(outputs.box_deltas, anchors)
    kept = suppress(boxes, jax.nn.softmax(outputs.class_logits, -1)[:, 1:].T, config)
    kept_boxes = jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0)
    height, width = outputs.prototypes.shape[:2]
    masks = assemble_masks(outputs.prototypes, outputs.mask_coefficients[kept.indices])
    inside = box_mask(kept_boxes * _corners((height, width)), (height, width)) & kept.valid[:, None, None]
    return Detections(kept_boxes * config.image_size, kept.scores, kept.classes, kept.valid, jnp.where(inside, masks, 0.0))


def suppress(boxes: Float32[Array, "A 4"], scores: Float32[Array, "C A"], config: YolactConfig) -> Kept:
    """The configured non-maximum suppression.

    Args:
        boxes: `x1, y1, x2, y2` as fractions of the input.
        scores: foreground probabilities.
        config: `detection` says which rule, with which thresholds.
    """
    rule, implementation = config.detection, config.implementation
    candidates = scores.max(0) > rule.score_threshold
    if rule.nms == "fast":
        return fast_nms(
            boxes,
            scores,
            candidates,
            iou_threshold=rule.iou_threshold,
            top_k=rule.top_k,
            max_detections=rule.max_detections,
            implementation=implementation,
        )
    if rule.nms == "cross_class":
        return cross_class_fast_nms(
            boxes, scores, candidates, iou_threshold=rule.iou_threshold, top_k=rule.top_k, implementation=implementation
        )
    return class_nms(
        boxes * config.image_size,
        scores.T,
        score_threshold=rule.score_threshold,
        iou_threshold=rule.iou_threshold,
        max_detections=rule.max_detections,
        # The original's compiled routine counts pixels inclusively and suppresses at the threshold.
        pixel_offset=1.0,
        suppress_equal=True,
        implementation=implementation,
    )
