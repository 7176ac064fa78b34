"""The region proposal network (arXiv:1506.01497): its head, its proposals, and its losses."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxseg.devices import each_image, on_each_device
from jaxseg.models.anchored.conventions import Conventions
from jaxseg.models.anchored.matching import match_objects
from jaxseg.models.layers import conv
from jaxseg.models.rcnn.config import RpnConfig
from jaxseg.ops.boxes import clip_boxes, longer_than
from jaxseg.ops.implementation import Implementation
from jaxseg.ops.losses import smooth_l1
from jaxseg.ops.nms import exact_nms
from jaxseg.ops.sampling import Sampler
from jaxseg.structures import Targets

_normal = nn.initializers.normal


class Proposals(NamedTuple):
    """Regions that may hold an object: `P` rows, of which some are padding.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input.
        valid: whether a row is a proposal and not padding.
    """

    boxes: Float32[Array, "*B P 4"]
    valid: Bool[Array, "*B P"]


class RpnOutputs(NamedTuple):
    """The scores (logits) and box deltas of each level's anchors, in the order y, x, shape."""

    objectness: list[Float32[Array, "B _"]]
    deltas: list[Float32[Array, "B _ 4"]]


class RpnSums(NamedTuple):
    """The sums of the RPN's losses over one image, before they are normalised."""

    objectness: Float32[Array, ""]
    box: Float32[Array, ""]
    positives: Int32[Array, ""]
    negatives: Int32[Array, ""]


class RpnHead(nn.Module):
    """A 3x3 convolution with ReLU, and two 1x1 convolutions, which all levels share."""

    channels: int
    num_anchors: int
    dtype: Any

    def setup(self) -> None:
        self.conv = conv(self.channels, 3, init=_normal(0.01), dtype=self.dtype)
        self.objectness = conv(self.num_anchors, 1, init=_normal(0.01), dtype=self.dtype)
        self.box = conv(4 * self.num_anchors, 1, init=_normal(0.01), dtype=self.dtype)

    def __call__(self, levels: tuple[Float[Array, "B _ _ c"], ...]) -> RpnOutputs:
        outputs = RpnOutputs([], [])
        for level in levels:
            x = nn.relu(self.conv(level))
            batch = x.shape[0]
            outputs.objectness.append(self.objectness(x).astype(jnp.float32).reshape(batch, -1))
            outputs.deltas.append(self.box(x).astype(jnp.float32).reshape(batch, -1, 4))
        return outputs


def propose(
    outputs: RpnOutputs,
    anchors: list[Float32[np.ndarray, "_ 4"]],
    image_sizes: Int32[Array, "B 2"],
    *,
    config: RpnConfig,
    conventions: Conventions,
    implementation: Implementation = "auto",
    train: bool,
) -> Proposals:
    """Selects the proposals: the best of each level, suppressed, and then the best of all levels.

    No gradient flows back from the proposals.

    Args:
        outputs: the outputs for a batch.
        anchors: the anchors of each level, in pixels of the network's input.
        image_sizes: the height and width of each picture within the network's input, to which
            proposals are clipped.
        config: the numbers of proposals and the threshold of suppression.
        conventions: the rules that the originals differ in.
        implementation: the implementation of non-maximum suppression.
        train: whether the numbers of training apply, where several images may share a quota.
    """
    outputs = jax.lax.stop_gradient(outputs)
    count = config.pre_nms_train if train else config.pre_nms_test

    def one_image(outputs: RpnOutputs, image_size: Array) -> tuple[Array, Array]:
        levels = [
            _best_of_level(*level, image_size, count=count, conventions=conventions)
            for level in zip(outputs.objectness, outputs.deltas, anchors, strict=True)
        ]
        # Levels with fewer anchors are padded, so that all levels are suppressed in one call.
        rows = max(len(scores) for _, scores in levels)
        boxes = jnp.stack([jnp.pad(boxes, ((0, rows - len(boxes)), (0, 0))) for boxes, _ in levels])
        scores = jnp.stack([jnp.pad(scores, (0, rows - len(scores)), constant_values=-jnp.inf) for _, scores in levels])
        suppress = functools.partial(
            exact_nms, iou_threshold=config.nms_iou, pixel_offset=conventions.pixel_offset, implementation=implementation
        )
        keep = jax.vmap(suppress)(boxes, scores, scores > -jnp.inf)
        return boxes.reshape(-1, 4), jnp.where(keep, scores, -jnp.inf).reshape(-1)

    boxes, scores = each_image(one_image)(outputs, image_sizes)
    quota, group = (config.post_nms_train, conventions.proposal_group) if train else (config.post_nms_test, 1)
    group = math.gcd(group, len(scores))

    def best(boxes: Array, scores: Array) -> Proposals:
        indices, valid = _shared_quota(scores, quota, group)
        chosen = jnp.take_along_axis(boxes, indices[..., None], 1)
        return Proposals(jnp.where(valid[..., None], chosen, 0.0), valid)

    return on_each_device(best, group)(boxes, scores)


def _best_of_level(
    objectness: Float32[Array, "a"],
    deltas: Float32[Array, "a 4"],
    anchors: Float32[np.ndarray, "a 4"],
    image_size: Int32[Array, "2"],
    *,
    count: int,
    conventions: Conventions,
) -> tuple[Float32[Array, "k 4"], Float32[Array, "k"]]:
    """Returns the best boxes of a level with their scores, in descending order of the scores.

    Boxes that are too small have the score -inf.
    """
    scores, indices = jax.lax.top_k(jax.nn.sigmoid(objectness) if conventions.rank_probabilities else objectness, min(count, len(anchors)))
    boxes = conventions.anchor_coder.decode(deltas[indices], jnp.asarray(anchors)[indices])
    boxes = clip_boxes(boxes, image_size, pixel_offset=conventions.pixel_offset)
    return boxes, jnp.where(longer_than(boxes, conventions.min_proposal_side), scores, -jnp.inf)


def _shared_quota(scores: Float32[Array, "B n"], count: int, group: int) -> tuple[Int32[Array, "B P"], Bool[Array, "B P"]]:
    """Selects the best `count` proposals of every `group` images.

    The proposals of images that share a quota keep the order of `scores`, as in maskrcnn-benchmark.

    Args:
        scores: the scores of the candidates of each image; -inf marks padding.
        count: the number of proposals that the images of a group share.
        group: the number of images in a group.

    Returns:
        The selected candidates' indices in each image, and which of these rows are valid.
    """
    batch, candidates = scores.shape
    rows = min(count, candidates)
    if group == 1:
        best, indices = jax.lax.top_k(scores, rows)
        return indices, best > -jnp.inf
    shared = scores.reshape(batch // group, group * candidates)
    best, indices = jax.lax.top_k(shared, min(count, group * candidates))
    chosen = jax.vmap(lambda rows, counts: jnp.zeros(shared.shape[1], bool).at[rows].set(counts))(indices, best > -jnp.inf)
    chosen = chosen.reshape(scores.shape)
    indices = jnp.argsort(~chosen, axis=1, stable=True)[:, :rows]
    return indices, jnp.take_along_axis(chosen, indices, 1)


def rpn_sums(
    outputs: RpnOutputs,
    targets: Targets,
    image_size: Int32[Array, "2"],
    priorities: Float32[Array, "A"],
    *,
    anchors: Float32[np.ndarray, "A 4"],
    config: RpnConfig,
    conventions: Conventions,
) -> RpnSums:
    """Computes the sums of the RPN's losses over one image.

    They are the binary cross entropy of the sampled anchors and the box loss of the positive ones.

    Args:
        outputs: the outputs for one image.
        targets: the ground truth; crowd regions are left out.
        image_size: the height and width of the picture within the network's input.
        priorities: a number in 0..1 for each anchor; those with the largest numbers are sampled.
        anchors: the anchors of all levels, in pixels of the network's input.
        config: the thresholds of matching and the numbers of samples.
        conventions: the rules that the originals differ in.
    """
    objectness, deltas = jnp.concatenate(outputs.objectness), jnp.concatenate(outputs.deltas)
    boxes = jnp.asarray(targets.boxes)
    labels, matched = match_objects(
        anchors, targets, image_size, positive_iou=config.positive_iou, negative_iou=config.negative_iou, conventions=conventions
    )
    positive, negative = Sampler(config.samples, config.positive_fraction).masks(labels, priorities)
    entropy = optax.sigmoid_binary_cross_entropy(objectness, positive.astype(jnp.float32))
    truth = conventions.anchor_coder.encode(boxes[matched], jnp.asarray(anchors))
    # Rows that are not positive may be matched to padding, whose deltas can be infinite.
    truth = jnp.where(positive[:, None], truth, 0.0)
    box = smooth_l1(deltas, truth, conventions.rpn_box_beta)
    return RpnSums(
        objectness=jnp.where(positive | negative, entropy, 0.0).sum(),
        box=jnp.where(positive[:, None], box, 0.0).sum(),
        positives=positive.sum(),
        negatives=negative.sum(),
    )


def rpn_losses(sums: RpnSums, valid: Bool[Array, "B"], config: RpnConfig, conventions: Conventions) -> dict[str, Float32[Array, ""]]:
    """Normalises the sums of the losses over the images of a batch.

    Args:
        sums: the sums over each image.
        valid: whether an image counts; the others only fill up the batch.
        config: the number of samples of each image.
        conventions: the rule of normalisation.
    """
    if conventions.rpn_normalizer == "quota":
        samples = jnp.full(valid.shape, config.samples)
    elif conventions.rpn_normalizer == "sampled":
        samples = sums.positives + sums.negatives
    else:
        samples = jnp.maximum(sums.positives, 1) + jnp.maximum(sums.negatives, 1)
    total = jnp.maximum(jnp.where(valid, samples, 0).sum(), 1)
    return {
        "rpn_class": jnp.where(valid, sums.objectness, 0.0).sum() / total,
        "rpn_box": jnp.where(valid, sums.box, 0.0).sum() / total,
    }
