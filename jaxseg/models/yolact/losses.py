"""YOLACT's losses (arXiv:1904.02689, section 3): what one image contributes, and the sum over a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.models.yolact.config import LossConfig
from jaxseg.models.yolact.outputs import YolactOutputs, corner_scale
from jaxseg.ops.boxes import encode_boxes
from jaxseg.ops.losses import binary_cross_entropy
from jaxseg.ops.masks import assemble_masks, box_mask, unpack_bits
from jaxseg.ops.matching import Match, match_priors
from jaxseg.ops.sampling import choose, hardest
from jaxseg.structures import InputSpec, Targets


class LossSums(NamedTuple):
    """One image's share of the batch's losses, before any weight and normaliser."""

    box: Float32[Array, ""]
    classification: Float32[Array, ""]
    mask: Float32[Array, ""]
    semantic: Float32[Array, ""]
    positives: Float32[Array, ""]


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
    boxes = jnp.asarray(targets.boxes) / corner_scale(spec.input_sizes[0])
    labels, indices = match_priors(
        centers_tocorner_scale(anchors),
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
    mask_boxes = boxes[objects] * corner_scale((height, width))
    truth = unpack_bits(targets.masks, width)[objects]
    predicted = assemble_masks(outputs.prototypes, outputs.mask_coefficients[chosen])
    predicted = jnp.where(box_mask(mask_boxes, (height, width)), predicted, 0.0)
    per_object = binary_cross_entropy(predicted, truth).sum((1, 2))
    box_size = mask_boxes[:, 2:] - mask_boxes[:, :2]
    per_object = jnp.where(counts, per_object / jnp.where(counts, box_size[:, 0] * box_size[:, 1], 1.0), 0.0)
    # A sample stands for all positives.
    return per_object.sum() * positive.sum() / jnp.maximum(counts.sum(), 1)
