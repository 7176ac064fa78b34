"""YOLACT (arXiv:1904.02689) and YOLACT++ (arXiv:1912.06218).

These are one-stage detectors whose masks are combinations of prototypes.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxseg.config import Config
from jaxseg.devices import each_image
from jaxseg.models.backbones.build import build_backbone
from jaxseg.models.detector import Detector, detector_of
from jaxseg.models.fpn import FPN
from jaxseg.models.freezing import in_frozen_stages, is_norm
from jaxseg.models.layers import conv
from jaxseg.models.yolact.config import YolactConfig
from jaxseg.models.yolact.detections import image_detections
from jaxseg.models.yolact.losses import image_losses, mask_iou_loss, weighted_losses
from jaxseg.models.yolact.outputs import YolactOutputs
from jaxseg.ops.anchors import yolact_anchors
from jaxseg.ops.images import Images, normalize_images, resize_bilinear
from jaxseg.structures import Batch, Detections, InputSpec


class Prototypes(nn.Module):
    """ProtoNet (figure 3 of the paper), which makes `K` prototypes of twice P3's resolution."""

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
    """The prediction head, which all pyramid levels share (figure 4 of the paper).

    It returns box deltas, class logits and mask coefficients.
    """

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


class MaskIou(nn.Module):
    """The network that estimates the IoU of a mask with its object (YOLACT++, section 5).

    Its convolutions have no padding, and the last one is followed by a ReLU and a global maximum.
    """

    channels: tuple[int, ...]
    num_classes: int
    dtype: Any

    @nn.compact
    def __call__(self, masks: Float32[Array, "n h w"]) -> Float32[Array, "n C"]:
        x = masks[..., None].astype(self.dtype)
        for i, channels in enumerate(self.channels):
            x = nn.relu(conv(channels, 3, 2, padding=0, dtype=self.dtype, name=f"conv{i + 1}")(x))
        x = nn.relu(conv(self.num_classes, 1, dtype=self.dtype, name="output")(x))
        return x.astype(jnp.float32).max((1, 2))


@detector_of(YolactConfig)
class Yolact(Detector):
    """YOLACT: a backbone, a feature pyramid, prototypes, a shared head, and a semantic head.

    The semantic head runs in training only. YOLACT++ adds a network that rescores masks.

    Attributes:
        config: the model's part of the configuration.
        dtype: the type in which the convolutions compute.
        freeze_batch_norm: whether the running statistics, scales and biases of all batch norms stay
            as they are.
    """

    config: YolactConfig
    freeze_batch_norm: bool = False

    @classmethod
    def from_config(cls, config: Config, dtype: Any) -> "Yolact":
        assert isinstance(config.model, YolactConfig)
        return cls(config.model, dtype, config.model.freezes_batch_norm(config.train.batch_size))

    def setup(self) -> None:
        c = self.config
        self.backbone = build_backbone(c.backbone, "frozen" if self.freeze_batch_norm else "train", self.dtype)
        self.fpn = FPN(c.fpn_channels, "yolact", self.dtype)
        self.prototypes = Prototypes(c.prototype_channels, c.num_prototypes, self.dtype)
        self.head = PredictionHead(
            channels=c.head_channels,
            num_anchors=len(c.anchor_scales[0]) * len(c.anchor_aspect_ratios),
            num_classes=c.num_classes,
            num_prototypes=c.num_prototypes,
            dtype=self.dtype,
        )
        self.semantic_head = conv(c.num_classes, 1, dtype=self.dtype)
        if c.mask_iou_channels:
            self.mask_iou = MaskIou(c.mask_iou_channels, c.num_classes, self.dtype)

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """The height and width of P3 to P7."""
        return [(side, side) for side in self.config.level_sides]

    @property
    def input_spec(self) -> InputSpec:
        side, p3 = self.config.image_size, self.level_sizes[0][0]
        return InputSpec(((side, side),), (2 * p3, 2 * p3), (p3, p3), self.config.num_classes)

    def anchors(self) -> Float32[Array, "A 4"]:
        """Returns the anchors, `cx, cy, w, h` as fractions of the input.

        Boxes are matched and encoded in this unit because the original does so: many anchors
        overlap an object equally, and rounding decides which of them is matched to it.
        """
        c = self.config
        return jnp.asarray(yolact_anchors(c.image_size, self.level_sizes, c.anchor_scales, c.anchor_aspect_ratios, square=c.square_anchors))

    def __call__(self, images: Images, *, train: bool = False, semantic: bool = False) -> YolactOutputs:
        """Returns the raw outputs.

        Args:
            images: RGB images in 0..255, of the network's input size.
            train: whether batch norm uses and updates the batch's statistics, unless it is frozen.
            semantic: whether the semantic head runs, too.
        """
        expected = (self.config.image_size, self.config.image_size, 3)
        if images.shape[1:] != expected:
            raise ValueError(
                f"YOLACT at {expected[0]} px takes images of shape [B, {expected[0]}, {expected[1]}, 3]; these have {images.shape}."
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
        outputs = self(images, semantic=True)
        if self.config.mask_iou_channels:
            self.mask_iou(outputs.prototypes[..., 0])
        return outputs

    # ---- Training ----

    def learns(self, path: tuple[str, ...]) -> bool:
        """Whether a parameter learns: all do but those of frozen batch norms and frozen stages."""
        return not (self.freeze_batch_norm and is_norm(path)) and not in_frozen_stages(path, self.config.backbone.frozen_stages)

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """See `Detector.losses`; the original calls these terms B, C, M, S and I.

        `semantic` is normalised by the images, all others by the positives.
        """
        outputs = self(jnp.asarray(batch.images), train=train, semantic=True)
        priorities = jax.random.uniform(self.make_rng("sampling"), outputs.class_logits.shape[:2])
        one_image = functools.partial(image_losses, anchors=self.anchors(), spec=self.input_spec, config=self.config.losses)
        sums, masks = each_image(one_image)(outputs, batch.targets, priorities)
        if self.config.mask_iou_channels:
            sums = sums._replace(mask_iou=mask_iou_loss(self._mask_ious(masks.soft, masks.classes), masks, self.config.losses))
        sums = jax.tree.map(lambda x: jnp.where(batch.valid, x, 0.0).sum(), sums)
        return weighted_losses(sums, jnp.maximum(batch.valid.sum(), 1), self.config.losses)

    def _mask_ious(self, masks: Float32[Array, "B D h w"], classes: Int32[Array, "B D"]) -> Float32[Array, "B D"]:
        """Estimates the IoU of each mask with the object of its class that it stands for."""
        ious = self.mask_iou(masks.reshape(-1, *masks.shape[2:])).reshape(*classes.shape, -1)
        return jnp.take_along_axis(ious, classes[..., None], -1)[..., 0]

    # ---- Detection ----

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """See `Detector.detect`; `image_sizes` is not used, for every picture fills the input."""
        del image_sizes
        outputs = self(images)
        found = each_image(functools.partial(image_detections, anchors=self.anchors(), config=self.config))(outputs)
        if not self.config.mask_iou_channels:
            return found
        ious = self._mask_ious(jnp.asarray(found.masks), jnp.asarray(found.classes))
        return dataclasses.replace(found, mask_scores=found.scores * ious)
