"""YOLACT (arXiv:1904.02689): prototypes and coefficients, one stage."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxseg.config import Config
from jaxseg.devices import each_image
from jaxseg.models.backbones.build import build_backbone
from jaxseg.models.detector import Detector, Images, detector_of, normalize_images, resize_bilinear
from jaxseg.models.fpn import FPN
from jaxseg.models.freezing import in_frozen_stages, is_norm
from jaxseg.models.layers import conv
from jaxseg.models.yolact.config import YolactConfig
from jaxseg.models.yolact.detections import image_detections
from jaxseg.models.yolact.losses import image_losses, weighted_losses
from jaxseg.models.yolact.outputs import YolactOutputs
from jaxseg.ops.anchors import yolact_anchors
from jaxseg.structures import Batch, Detections, InputSpec


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


@detector_of(YolactConfig)
class Yolact(Detector):
    """Backbone, feature pyramid, prototypes, shared head; a semantic head that exists in training only.

    Attributes:
        config: the model's part of the configuration.
        dtype: of the convolutions.
        freeze_batch_norm: keeps the running statistics, scales and biases of all batch norms as they are.
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
