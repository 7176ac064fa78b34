"""What happens to regions: the heads that look at them, which of them learn what, and what becomes a detection."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxseg.models.anchored.conventions import Conventions
from jaxseg.models.backbones.resnet import Bottleneck
from jaxseg.models.layers import Deconvolution, NormMode, conv, kaiming_normal, kaiming_uniform
from jaxseg.models.rcnn.config import RoiConfig
from jaxseg.models.rcnn.rpn import Proposals
from jaxseg.ops.boxes import DELTA_WEIGHTS, clip_boxes, decode_deltas, encode_deltas, longer_than
from jaxseg.ops.implementation import Implementation
from jaxseg.ops.losses import smooth_l1
from jaxseg.ops.masks import box_mask_targets, unpack_bits
from jaxseg.ops.matching import match_anchors
from jaxseg.ops.nms import Kept, class_nms
from jaxseg.ops.sampling import sample_rois
from jaxseg.structures import Targets


class RoiSamples(NamedTuple):
    """Regions that learn, `S` rows of one image; the positive ones come first.

    Attributes:
        boxes: in pixels of the network's input.
        valid: the row learns.
        positive: the row has an object.
        objects: rows of the ground truth, for positive ones.
        classes: 0 .. C-1, and C for the background.
    """

    boxes: Float32[Array, "*B S 4"]
    valid: Bool[Array, "*B S"]
    positive: Bool[Array, "*B S"]
    objects: Int32[Array, "*B S"]
    classes: Int32[Array, "*B S"]


class RoiSums(NamedTuple):
    """One image's share of the regions' losses, before any normaliser."""

    classification: Float32[Array, ""]
    box: Float32[Array, ""]
    samples: Int32[Array, ""]


# ---- Heads ----


class BoxHead(nn.Module):
    """Two fully connected layers with ReLU."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, pooled: Float[Array, "n s s c"], *, train: bool) -> Float[Array, "n f"]:
        del train
        x = pooled.reshape(len(pooled), -1)
        for name in ("fc1", "fc2"):
            x = nn.relu(nn.Dense(self.features, kernel_init=kaiming_uniform, dtype=self.dtype, name=name)(x))
        return x


class C5Head(nn.Module):
    """ResNet's last stage as the head of regions pooled from C4; boxes and masks share it."""

    blocks: int
    width: int
    stride_in_1x1: bool
    norm: Literal["batch", "group"]
    norm_mode: NormMode
    norm_epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, pooled: Float[Array, "n s s c"], *, train: bool) -> Float[Array, "n h h C"]:
        x = pooled
        for block in range(self.blocks):
            x = Bottleneck(
                width=self.width,
                stride=2 if block == 0 else 1,
                project=block == 0,
                stride_in_1x1=self.stride_in_1x1,
                norm=self.norm,
                norm_mode=self.norm_mode,
                norm_epsilon=self.norm_epsilon,
                dtype=self.dtype,
                name=f"stage4_block{block}",
            )(x, train=train)
        return x


class BoxPredictor(nn.Module):
    """Class logits, the background last, and box deltas for each class."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Float[Array, "n f"]) -> tuple[Float32[Array, "n C1"], Float32[Array, "n C 4"]]:
        normal = nn.initializers.normal
        logits = nn.Dense(self.num_classes + 1, kernel_init=normal(0.01), dtype=self.dtype, name="class")(features)
        deltas = nn.Dense(4 * self.num_classes, kernel_init=normal(0.001), dtype=self.dtype, name="box")(features)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(-1, self.num_classes, 4)


class ClassChannel(nn.Module):
    """A 1x1 convolution to one channel a class, of which each region needs only its own class's."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], classes: Int32[Array, "n"]) -> Float32[Array, "n h w"]:
        kernel = self.param("kernel", kaiming_normal, (1, 1, x.shape[-1], self.num_classes), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,), jnp.float32)
        columns = kernel[0, 0].T[classes]
        return jnp.einsum("nhwc,nc->nhw", x.astype(jnp.float32), columns) + bias[classes][:, None, None]


class MaskHead(nn.Module):
    """3x3 convolutions, a deconvolution to twice the resolution, and the mask of one class."""

    channels: int
    convolutions: int
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, pooled: Float[Array, "n s s c"], classes: Int32[Array, "n"]) -> Float32[Array, "n S S"]:
        x = pooled
        for i in range(self.convolutions):
            x = nn.relu(conv(self.channels, 3, init=kaiming_normal, dtype=self.dtype, name=f"conv{i + 1}")(x))
        x = nn.relu(Deconvolution(self.channels, self.dtype, name="deconv")(x))
        return ClassChannel(self.num_classes, name="output")(x, classes)


# ---- Training, one image ----


def sample_regions(
    proposals: Proposals,
    targets: Targets,
    priorities: Float32[Array, "Q"],
    num_classes: int,
    config: RoiConfig,
    conventions: Conventions,
) -> RoiSamples:
    """The regions that learn: proposals and, so that there are positive ones from the start, the ground truth itself.

    Args:
        proposals: of one image, `P` rows.
        targets: of the same, `N` rows; crowds do not count.
        priorities: in 0..1, `P + N` of them; the largest are sampled.
        num_classes: of the foreground.
        config: how many, and from which overlap on a region is positive.
        conventions: whose rules.
    """
    truth, ordinary = jnp.asarray(targets.boxes), targets.valid & ~targets.crowd
    boxes = jnp.concatenate([proposals.boxes, truth])
    labels, objects = match_anchors(
        boxes,
        truth,
        ordinary,
        positive_iou=config.positive_iou,
        negative_iou=config.positive_iou,
        forced="best_anchor" if conventions.forced_roi_match else "none",
        forced_min_iou=config.positive_iou,
        pixel_offset=conventions.pixel_offset,
        candidates=jnp.concatenate([proposals.valid, ordinary]),
    )
    indices, valid, positive = sample_rois(labels, priorities, count=config.samples, positive_fraction=config.positive_fraction)
    objects = objects[indices]
    classes = jnp.where(positive, jnp.asarray(targets.classes)[objects], num_classes)
    return RoiSamples(jax.lax.stop_gradient(boxes[indices]), valid, positive, objects, classes)


def region_sums(
    logits: Float32[Array, "S C1"],
    deltas: Float32[Array, "S C 4"],
    samples: RoiSamples,
    targets: Targets,
    conventions: Conventions,
) -> RoiSums:
    """Cross entropy of the sampled regions, and of the positive ones the deltas of their class."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, samples.classes)
    own = jnp.minimum(samples.classes, deltas.shape[1] - 1)
    deltas = jnp.take_along_axis(deltas, own[:, None, None], 1)[:, 0]
    truth = encode_deltas(
        jnp.asarray(targets.boxes)[samples.objects], samples.boxes, weights=DELTA_WEIGHTS, pixel_offset=conventions.pixel_offset
    )
    positive = (samples.positive & samples.valid)[:, None]
    box = smooth_l1(deltas, jnp.where(positive, truth, 0.0), conventions.roi_box_beta)
    return RoiSums(
        classification=jnp.where(samples.valid, entropy, 0.0).sum(),
        box=jnp.where(positive, box, 0.0).sum(),
        samples=samples.valid.sum(),
    )


def mask_sum(
    logits: Float32[Array, "M s s"], samples: RoiSamples, targets: Targets, crop_size: int, conventions: Conventions
) -> Float32[Array, ""]:
    """Binary cross entropy of the positive regions' masks, the mean over each, summed.

    Args:
        logits: of the first `M` samples, each of its own class.
        samples: of the image.
        targets: of the image; its masks are crops over its boxes.
        crop_size: cells of a crop's side.
        conventions: whose rules.
    """
    assert targets.masks is not None
    count, side = logits.shape[:2]
    objects, boxes = samples.objects[:count], samples.boxes[:count]
    # Crops reach to the boxes' far edges.
    frames = jnp.asarray(targets.boxes)[objects] + jnp.array([0.0, 0.0, conventions.pixel_offset, conventions.pixel_offset])
    crops = unpack_bits(jnp.asarray(targets.masks)[objects], crop_size).astype(jnp.float32)
    if conventions.soft_mask_targets:
        # torchvision cuts masks with its unaligned RoIAlign, half a pixel to the right and down.
        truth = box_mask_targets(crops, frames, boxes + 0.5, side)
    else:
        truth = (box_mask_targets(crops, frames, boxes, side) >= 0.5).astype(jnp.float32)
    entropy = optax.sigmoid_binary_cross_entropy(logits, truth).mean((1, 2))
    return jnp.where(samples.positive[:count] & samples.valid[:count], entropy, 0.0).sum()


# ---- Detection, one image ----


def kept_regions(
    logits: Float32[Array, "P C1"],
    deltas: Float32[Array, "P C 4"],
    proposals: Proposals,
    image_size: Int32[Array, "2"],
    config: RoiConfig,
    conventions: Conventions,
    implementation: Implementation = "auto",
) -> tuple[Float32[Array, "D 4"], Kept]:
    """The detections: boxes of each class, clipped, suppressed within their class, the best of all classes."""
    boxes = decode_deltas(
        deltas,
        proposals.boxes[:, None],
        weights=DELTA_WEIGHTS,
        pixel_offset=conventions.pixel_offset,
        clamp_both_sides=conventions.clamp_both_sides,
    )
    boxes = clip_boxes(boxes, image_size, pixel_offset=conventions.pixel_offset)
    candidates = longer_than(boxes, conventions.min_detection_side) & proposals.valid[:, None]
    scores = jnp.where(candidates, jax.nn.softmax(logits, -1)[:, :-1], 0.0)
    kept = class_nms(
        boxes,
        scores,
        score_threshold=config.score_threshold,
        iou_threshold=config.nms_iou,
        max_detections=config.max_detections,
        pixel_offset=conventions.pixel_offset,
        implementation=implementation,
    )
    return jnp.where(kept.valid[:, None], boxes[kept.indices, kept.classes], 0.0), kept
