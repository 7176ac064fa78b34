"""YOLACT's losses (arXiv:1904.02689, section 3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32

from jaxseg.models.yolact.config import LossConfig
from jaxseg.models.yolact.outputs import YolactOutputs, corner_scale
from jaxseg.ops.box_coder import ssd_encode
from jaxseg.ops.boxes import centers_to_corners
from jaxseg.ops.losses import binary_cross_entropy
from jaxseg.ops.masks import assemble_masks, box_mask, unpack_bits
from jaxseg.ops.matching import Match, PriorMatcher
from jaxseg.ops.sampling import choose, hardest
from jaxseg.structures import InputSpec, Targets


class LossSums(NamedTuple):
    """The sums of the losses over one image, before they are weighted and normalised."""

    box: Float32[Array, ""]
    classification: Float32[Array, ""]
    mask: Float32[Array, ""]
    semantic: Float32[Array, ""]
    positives: Float32[Array, ""]
    mask_iou: Float32[Array, ""] | None = None


class MaskSamples(NamedTuple):
    """The assembled masks of the `M` positives of an image that learn masks.

    Attributes:
        soft: the masks, cropped to the ground-truth boxes.
        truth: the masks of the matched objects.
        classes: the classes of the objects.
        counts: whether the row holds a positive; all other rows are padding.
    """

    soft: Float32[Array, "*B M h w"]
    truth: Bool[Array, "*B M h w"]
    classes: Int32[Array, "*B M"]
    counts: Bool[Array, "*B M"]


def image_losses(
    outputs: YolactOutputs,
    targets: Targets,
    priorities: Float32[Array, "A"],
    *,
    anchors: Float32[Array, "A 4"],
    spec: InputSpec,
    config: LossConfig,
) -> tuple[LossSums, MaskSamples]:
    """Computes the unweighted sums of the losses over one image, and the masks that learned.

    The loss `mask_iou` of YOLACT++ is not among them; `mask_iou_loss` computes it from the masks.

    Args:
        outputs: the outputs for one image, with `segmentation_logits`.
        targets: the ground truth of the same image.
        priorities: a number in 0..1 for each anchor. If there are more positive anchors than
            `max_mask_positives`, those with the largest numbers learn masks.
        anchors: `cx, cy, w, h` as fractions of the input.
        spec: the sizes of the input and the masks.
        config: the rules of matching and of the losses.
    """
    assert targets.semantic is not None
    assert spec.semantic_size is not None
    assert spec.mask_size is not None
    boxes = jnp.asarray(targets.boxes) / corner_scale(spec.input_sizes[0])
    matcher = PriorMatcher(config.positive_iou, config.negative_iou, config.crowd_overlap)
    ordinary, crowd = targets.valid & ~targets.crowd, targets.valid & targets.crowd
    labels, indices = matcher(centers_to_corners(anchors), boxes, ordinary, crowd)
    positive = labels == Match.POSITIVE
    mask_loss, samples = _mask_loss(
        outputs,
        targets,
        boxes=boxes,
        indices=indices,
        positive=positive,
        priorities=priorities,
        mask_size=spec.mask_size,
        max_positives=config.max_mask_positives,
    )
    sums = LossSums(
        box=_box_loss(outputs.box_deltas, boxes[indices], anchors, positive),
        classification=_class_loss(outputs.class_logits, jnp.where(positive, targets.classes[indices] + 1, 0), labels, config),
        mask=mask_loss,
        semantic=optax.sigmoid_binary_cross_entropy(
            outputs.segmentation_logits, jnp.moveaxis(unpack_bits(targets.semantic, spec.semantic_size[1]), 0, -1).astype(jnp.float32)
        ).sum()
        / (spec.semantic_size[0] * spec.semantic_size[1]),
        positives=positive.sum().astype(jnp.float32),
    )
    return sums, samples


def weighted_losses(sums: LossSums, images: Int32[Array, ""], config: LossConfig) -> dict[str, Float32[Array, ""]]:
    """Weights and normalises the sums of the losses over a batch.

    The sums over a batch without positives are divided by 1; the original divides them by 0.

    Args:
        sums: the sums over the batch.
        images: the number of images in the batch.
        config: the weights.
    """
    positives = jnp.maximum(sums.positives, 1.0)
    losses = {
        "box": config.box_weight * sums.box / positives,
        "class": config.class_weight * sums.classification / positives,
        "mask": config.mask_weight * sums.mask / positives,
        "semantic": config.semantic_weight * sums.semantic / images,
    }
    if sums.mask_iou is not None:
        losses["mask_iou"] = config.mask_iou_weight * sums.mask_iou / positives
    return losses


def _box_loss(
    deltas: Float32[Array, "A 4"], boxes: Float32[Array, "A 4"], anchors: Float32[Array, "A 4"], positive: Bool[Array, "A"]
) -> Float32[Array, ""]:
    """Computes the smooth L1 loss of the positives."""
    # Rows that are not positive may be matched to padding, whose logarithm is infinite.
    target = jnp.where(positive[:, None], ssd_encode(boxes, anchors), 0.0)
    return jnp.where(positive[:, None], optax.huber_loss(deltas, target), 0.0).sum()


def mined_negatives(logits: Float32[Array, "A C1"], labels: Int32[Array, "A"], config: LossConfig) -> Bool[Array, "A"]:
    """Chooses the hard negatives: those whose background is least likely, three per positive."""
    positives = (labels == Match.POSITIVE).sum()
    count = jnp.where(positives > 0, config.negatives_per_positive * positives, config.negatives_without_positives)
    difficulty = jax.nn.logsumexp(logits, -1) - logits[:, 0]
    return hardest(jax.lax.stop_gradient(difficulty), labels == Match.NEGATIVE, jnp.minimum(count, labels.size - 1))


def _class_loss(
    logits: Float32[Array, "A C1"], classes: Int32[Array, "A"], labels: Int32[Array, "A"], config: LossConfig
) -> Float32[Array, ""]:
    """Computes the cross entropy of the positives and the hard negatives."""
    learns = (labels == Match.POSITIVE) | mined_negatives(logits, labels, config)
    return jnp.where(learns, optax.softmax_cross_entropy_with_integer_labels(logits, classes), 0.0).sum()


def _mask_loss(
    outputs: YolactOutputs,
    targets: Targets,
    *,
    boxes: Float32[Array, "N 4"],
    indices: Int32[Array, "A"],
    positive: Bool[Array, "A"],
    priorities: Float32[Array, "A"],
    mask_size: tuple[int, int],
    max_positives: int,
) -> tuple[Float32[Array, ""], MaskSamples]:
    """Computes the binary cross entropy of the assembled masks, divided by their boxes' areas.

    The masks, which are also returned, are cropped to the ground-truth boxes. A pixel of the ground
    truth outside of the crop counts 100, where the logarithm is cut off, as in the original.
    """
    assert targets.masks is not None
    chosen, counts = choose(positive, priorities, min(max_positives, positive.size))
    objects = indices[chosen]
    height, width = mask_size
    mask_boxes = boxes[objects] * corner_scale((height, width))
    truth = unpack_bits(targets.masks, width)[objects]
    predicted = assemble_masks(outputs.prototypes, outputs.mask_coefficients[chosen])
    predicted = jnp.where(box_mask(mask_boxes, (height, width)), predicted, 0.0)
    per_object = binary_cross_entropy(predicted, truth).sum((1, 2))
    box_size = mask_boxes[:, 2:] - mask_boxes[:, :2]
    per_object = jnp.where(counts, per_object / jnp.where(counts, box_size[:, 0] * box_size[:, 1], 1.0), 0.0)
    # The chosen positives represent all of them.
    loss = per_object.sum() * positive.sum() / jnp.maximum(counts.sum(), 1)
    return loss, MaskSamples(predicted, truth, targets.classes[objects], counts)


def mask_iou_loss(predicted: Float32[Array, "B M"], masks: MaskSamples, config: LossConfig) -> Float32[Array, "B"]:
    """Computes the smooth L1 loss of the estimated IoUs of masks (YOLACT++, section 5).

    The gradient also flows into the masks from which the IoUs were estimated, as in the original.

    Args:
        predicted: the estimated IoU of each mask for its object's class.
        masks: the masks; those of very small objects do not count.
        config: the rules of the losses.
    """
    found = masks.soft > 0.5
    intersection = (found & masks.truth).sum((-2, -1))
    area = masks.truth.sum((-2, -1))
    union = area + found.sum((-2, -1)) - intersection
    counts = masks.counts & (area > config.min_mask_iou_area)
    iou = intersection / jnp.maximum(union, 1)
    return jnp.where(counts, optax.huber_loss(predicted, iou), 0.0).sum(-1)
