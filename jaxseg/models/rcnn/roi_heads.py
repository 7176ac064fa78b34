"""The second stage of an R-CNN: heads, the sampling of regions, losses, and detections."""

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
from jaxseg.ops.boxes import clip_boxes, longer_than
from jaxseg.ops.implementation import Implementation
from jaxseg.ops.losses import smooth_l1
from jaxseg.ops.matching import Matcher
from jaxseg.ops.nms import Kept, class_nms
from jaxseg.ops.sampling import Sampler
from jaxseg.structures import Targets


class RoiSamples(NamedTuple):
    """The regions of an image that learn: `S` rows, of which the positive ones come first.

    Attributes:
        boxes: `x1, y1, x2, y2` in pixels of the network's input.
        valid: whether a row is a sample and not padding.
        positive: whether the region is matched to an object.
        objects: the object's row in the ground truth; only meaningful for positive regions.
        classes: the object's class, 0 .. C-1, or C for the background.
    """

    boxes: Float32[Array, "*B S 4"]
    valid: Bool[Array, "*B S"]
    positive: Bool[Array, "*B S"]
    objects: Int32[Array, "*B S"]
    classes: Int32[Array, "*B S"]


class RoiSums(NamedTuple):
    """The sums of the regions' losses over one image, before they are normalised."""

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
    """The last stage of a ResNet as the head of regions pooled from C4.

    Boxes and masks share it. Its attributes are those of `ResNet`, of which `blocks` is the number
    of blocks and `width` their width.
    """

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
    """Predicts class logits, the last of which is the background's, and each class's box deltas."""

    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Float[Array, "n f"]) -> tuple[Float32[Array, "n C1"], Float32[Array, "n C 4"]]:
        normal = nn.initializers.normal
        logits = nn.Dense(self.num_classes + 1, kernel_init=normal(0.01), dtype=self.dtype, name="class")(features)
        deltas = nn.Dense(4 * self.num_classes, kernel_init=normal(0.001), dtype=self.dtype, name="box")(features)
        return logits.astype(jnp.float32), deltas.astype(jnp.float32).reshape(-1, self.num_classes, 4)


class ClassChannel(nn.Module):
    """A 1x1 convolution to one channel per class; each region gets the channel of its class."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], classes: Int32[Array, "n"]) -> Float32[Array, "n h w"]:
        kernel = self.param("kernel", kaiming_normal, (1, 1, x.shape[-1], self.num_classes), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,), jnp.float32)
        columns = kernel[0, 0].T[classes]
        return jnp.einsum("nhwc,nc->nhw", x.astype(jnp.float32), columns) + bias[classes][:, None, None]


class MaskHead(nn.Module):
    """Predicts the mask logits of one class for each region.

    It consists of 3x3 convolutions, a deconvolution to twice the resolution, and a 1x1 convolution.
    """

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
    *,
    num_classes: int,
    config: RoiConfig,
    conventions: Conventions,
) -> RoiSamples:
    """Samples the regions that learn from the proposals and the ground-truth boxes.

    The ground truth is included so that there are positive regions from the first step on.

    Args:
        proposals: the proposals of one image, `P` rows.
        targets: the ground truth of the same image, `N` rows; crowd regions are left out.
        priorities: a number in 0..1 for each of the `P + N` regions; those with the largest numbers
            are sampled.
        num_classes: the number of foreground classes.
        config: the number of samples, and the IoU from which on a region is positive.
        conventions: the rules that the originals differ in.
    """
    truth, ordinary = jnp.asarray(targets.boxes), targets.valid & ~targets.crowd
    boxes = jnp.concatenate([proposals.boxes, truth])
    matcher = Matcher(
        positive_iou=config.positive_iou,
        negative_iou=config.positive_iou,
        forced="best_anchor" if conventions.forced_roi_match else "none",
        forced_min_iou=config.positive_iou,
        pixel_offset=conventions.pixel_offset,
    )
    labels, objects = matcher(boxes, truth, ordinary, jnp.concatenate([proposals.valid, ordinary]))
    indices, valid, positive = Sampler(config.samples, config.positive_fraction).rows(labels, priorities)
    objects = objects[indices]
    classes = jnp.where(positive, jnp.asarray(targets.classes)[objects], num_classes)
    return RoiSamples(boxes=jax.lax.stop_gradient(boxes[indices]), valid=valid, positive=positive, objects=objects, classes=classes)


def region_sums(
    logits: Float32[Array, "S C1"],
    deltas: Float32[Array, "S C 4"],
    samples: RoiSamples,
    targets: Targets,
    *,
    conventions: Conventions,
) -> RoiSums:
    """Computes the cross entropy of the sampled regions, and the box loss of the positive ones."""
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, samples.classes)
    own = jnp.minimum(samples.classes, deltas.shape[1] - 1)
    deltas = jnp.take_along_axis(deltas, own[:, None, None], 1)[:, 0]
    truth = conventions.region_coder.encode(jnp.asarray(targets.boxes)[samples.objects], samples.boxes)
    positive = (samples.positive & samples.valid)[:, None]
    box = smooth_l1(deltas, jnp.where(positive, truth, 0.0), conventions.roi_box_beta)
    return RoiSums(
        classification=jnp.where(samples.valid, entropy, 0.0).sum(),
        box=jnp.where(positive, box, 0.0).sum(),
        samples=samples.valid.sum(),
    )


def mask_sum(logits: Float32[Array, "M s s"], truth: Float32[Array, "M s s"], positive: Bool[Array, "M"]) -> Float32[Array, ""]:
    """Computes the binary cross entropy of each positive region's mask, and sums over the regions.

    Args:
        logits: the mask logits of each region, of its own class.
        truth: the targets of each region's cells, 0..1.
        positive: whether the region is positive; the others do not count.
    """
    entropy = optax.sigmoid_binary_cross_entropy(logits, truth).mean((1, 2))
    return jnp.where(positive, entropy, 0.0).sum()


# ---- Detection, one image ----


def kept_regions(
    logits: Float32[Array, "P C1"],
    deltas: Float32[Array, "P C 4"],
    proposals: Proposals,
    image_size: Int32[Array, "2"],
    *,
    config: RoiConfig,
    conventions: Conventions,
    implementation: Implementation = "auto",
) -> tuple[Float32[Array, "D 4"], Kept]:
    """Selects the detections of one image.

    Boxes are suppressed within their class, and the best of all classes are kept.

    Args:
        logits: the class logits of each proposal, the background last.
        deltas: the box deltas of each proposal for each class.
        proposals: the proposals.
        image_size: the height and width of the picture within the network's input, to which boxes
            are clipped.
        config: the thresholds and the number of detections.
        conventions: the rules that the originals differ in.
        implementation: the implementation of non-maximum suppression.

    Returns:
        The boxes of the detections in pixels of the network's input, and what suppression kept.
    """
    boxes = conventions.region_coder.decode(deltas, proposals.boxes[:, None])
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
