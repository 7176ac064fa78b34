"""Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870) with the conventions of four originals."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int32

from jaxseg.devices import each_image
from jaxseg.models.anchored.detector import AnchoredDetector, Levels, whole_sizes
from jaxseg.models.backbones.build import build_backbone
from jaxseg.models.detector import Images, detector_of
from jaxseg.models.fpn import FPN
from jaxseg.models.rcnn.config import RcnnConfig
from jaxseg.models.rcnn.roi_heads import (
    BoxHead,
    BoxPredictor,
    C5Head,
    MaskHead,
    RoiSamples,
    kept_regions,
    mask_sum,
    region_sums,
    sample_regions,
)
from jaxseg.models.rcnn.rpn import Proposals, RpnHead, RpnOutputs, propose, rpn_losses, rpn_sums
from jaxseg.ops.roi_align import pyramid_levels, roi_align
from jaxseg.structures import Batch, Detections


@struct.dataclass
class RcnnOutputs:
    """Raw outputs; `A` anchors in the order level, y, x, shape; `P` proposals, best first; the background is the last logit."""

    objectness: Float32[Array, "B A"]
    anchor_deltas: Float32[Array, "B A 4"]
    proposals: Float32[Array, "B P 4"]
    proposals_valid: Bool[Array, "B P"]
    class_logits: Float32[Array, "B P C1"]
    box_deltas: Float32[Array, "B P C 4"]


@detector_of(RcnnConfig)
class Rcnn(AnchoredDetector):
    """Trunk, neck, region proposals, and heads that look at each region."""

    config: RcnnConfig

    def setup(self) -> None:
        c, trunk = self.config, self.config.backbone
        is_c4 = c.neck == "c4"
        self.backbone = build_backbone(trunk, c.batch_norm, self.dtype, stages=3 if is_c4 else 4, dilated_c5=c.neck == "dilated_c5")
        if c.neck == "fpn":
            self.fpn = FPN(c.fpn_channels, "rcnn", self.dtype)
        # The proposals' convolution is as wide as what it looks at.
        channels = {"fpn": c.fpn_channels, "c4": 16 * trunk.width, "dilated_c5": 32 * trunk.width}[c.neck]
        self.rpn = RpnHead(channels, len(c.anchor_sizes[0]) * len(c.anchor_aspect_ratios), self.dtype)
        if is_c4:
            self.box_head: nn.Module = C5Head(
                trunk.stage_sizes[3], 8 * trunk.width, trunk.stride_in_1x1, trunk.norm, c.batch_norm, trunk.norm_epsilon, self.dtype
            )
        else:
            self.box_head = BoxHead(c.roi.box_features, self.dtype)
        self.box_predictor = BoxPredictor(c.num_classes, self.dtype)
        if c.masks:
            self.mask_head = MaskHead(c.roi.mask_channels, 0 if is_c4 else c.roi.mask_convolutions, c.num_classes, self.dtype)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the levels that anchors lie on; regions are pooled from all of them but P6."""
        return (4, 8, 16, 32, 64) if self.config.neck == "fpn" else (16,)

    @property
    def mask_crop_size(self) -> int | None:
        return self.config.roi.mask_crop_size if self.config.masks else None

    # ---- The network ----

    def pyramid(self, images: Images, image_sizes: Int32[Array, "B 2"], *, train: bool) -> Levels:
        """What anchors lie on and regions are pooled from, finest first."""
        features = self.backbone(self.trunk_input(images, image_sizes), train=train)
        return self.fpn(features) if self.config.neck == "fpn" else features[-1:]

    def pool(self, levels: Levels, boxes: Float32[Array, "B R 4"], size: int) -> Float[Array, "n s s c"]:
        """RoIAlign of each region from its level; regions of all images in one row."""
        rules = self.config.conventions
        if self.config.neck == "fpn":
            level = pyramid_levels(
                boxes,
                pixel_offset=rules.pixel_offset,
                ratio_epsilon=rules.level_ratio_epsilon,
                level_epsilon=rules.level_epsilon,
            )
            levels, strides, level = levels[:4], self.strides[:4], level - 2
        else:
            strides, level = self.strides, jnp.zeros(boxes.shape[:2], jnp.int32)
        pooled = roi_align(
            levels,
            boxes,
            level,
            strides=strides,
            output_size=size,
            sampling_ratio=rules.roi_sampling_ratio,
            aligned=rules.roi_aligned,
            implementation=self.config.implementation,
        )
        return pooled.reshape(-1, *pooled.shape[2:])

    def predict_boxes(
        self, levels: Levels, boxes: Float32[Array, "B R 4"], *, train: bool
    ) -> tuple[Float32[Array, "B R C1"], Float32[Array, "B R C 4"], Float[Array, "n _ _ _"] | None]:
        """Class logits and deltas of each region; with a C4 neck also the head's map, which masks are made of."""
        # C5's stride halves what is pooled.
        shared = self.config.neck == "c4"
        x = self.box_head(self.pool(levels, boxes, 2 * self.config.roi.box_size if shared else self.config.roi.box_size), train=train)
        logits, deltas = self.box_predictor(x.mean((1, 2)) if shared else x)
        rows = boxes.shape[:2]
        return logits.reshape(*rows, -1), deltas.reshape(*rows, -1, 4), x if shared else None

    def predict_masks(
        self,
        levels: Levels,
        boxes: Float32[Array, "B M 4"],
        classes: Int32[Array, "B M"],
        *,
        train: bool,
    ) -> Float32[Array, "B M s s"]:
        """Mask logits of each region, of its class."""
        pooled = self.pool(levels, boxes, self.config.roi.mask_size)
        if self.config.neck == "c4":
            pooled = self.box_head(pooled, train=train)
        logits = self.mask_head(pooled, classes.reshape(-1))
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])

    def __call__(self, images: Images, image_sizes: Int32[Array, "B 2"] | None = None) -> RcnnOutputs:
        """Raw outputs.

        Args:
            images: RGB 0..255, padded to network size.
            image_sizes: height and width of each picture within it; None: all of it.
        """
        if image_sizes is None:
            image_sizes = whole_sizes(images)
        levels = self.pyramid(images, image_sizes, train=False)
        outputs, proposals = self._propose(levels, images, image_sizes, train=False)
        logits, deltas, _ = self.predict_boxes(levels, proposals.boxes, train=False)
        objectness, anchor_deltas = (jnp.concatenate(values, 1) for values in outputs)
        return RcnnOutputs(objectness, anchor_deltas, proposals.boxes, proposals.valid, logits, deltas)

    def _propose(self, levels: Levels, images: Images, image_sizes: Int32[Array, "B 2"], *, train: bool) -> tuple[RpnOutputs, Proposals]:
        c, outputs = self.config, self.rpn(levels)
        anchors = self.anchors(levels, images)
        return outputs, propose(outputs, anchors, image_sizes, c.rpn, c.conventions, c.implementation, train=train)

    # ---- Training ----

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """`rpn_class` and `rpn_box` over sampled anchors; `class` and `box` over sampled regions; `mask` over positive ones."""
        c = self.config
        images, image_sizes, targets = jnp.asarray(batch.images), jnp.asarray(batch.image_sizes), batch.targets
        levels = self.pyramid(images, image_sizes, train=train)
        outputs, proposals = self._propose(levels, images, image_sizes, train=train)
        anchors = np.concatenate(self.anchors(levels, images))
        objectness, anchor_deltas = (jnp.concatenate(values, 1) for values in outputs)

        anchor_key, region_key = jax.random.split(self.make_rng("sampling"))
        rpn = each_image(lambda o, d, t, s, p: rpn_sums(o, d, anchors, t, s, p, c.rpn, c.conventions))(
            objectness, anchor_deltas, targets, image_sizes, jax.random.uniform(anchor_key, objectness.shape)
        )
        candidates = proposals.valid.shape[1] + targets.valid.shape[1]
        samples = each_image(lambda p, t, q: sample_regions(p, t, q, c.num_classes, c.roi, c.conventions))(
            proposals, targets, jax.random.uniform(region_key, (len(images), candidates))
        )
        samples = samples._replace(valid=samples.valid & batch.valid[:, None])
        return rpn_losses(rpn, jnp.asarray(batch.valid), c.rpn, c.conventions) | self.region_losses(levels, samples, batch, train=train)

    def region_losses(self, levels: Levels, samples: RoiSamples, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """What the heads learn from sampled regions."""
        c, targets = self.config, batch.targets
        logits, deltas, shared = self.predict_boxes(levels, samples.boxes, train=train)
        sums = each_image(lambda o, d, s, t: region_sums(o, d, s, t, c.conventions))(logits, deltas, samples, targets)
        total = jnp.maximum(sums.samples.sum(), 1)
        losses = {"class": sums.classification.sum() / total, "box": sums.box.sum() / total}
        if c.masks:
            # Positive regions come first, and there are no more of them.
            count = int(c.roi.samples * c.roi.positive_fraction)
            boxes, classes = samples.boxes[:, :count], jnp.minimum(samples.classes[:, :count], c.num_classes - 1)
            if shared is None:
                mask_logits = self.predict_masks(levels, boxes, classes, train=train)
            else:
                shared = shared.reshape(*samples.valid.shape, *shared.shape[1:])[:, :count]
                mask_logits = self.mask_head(shared.reshape(-1, *shared.shape[2:]), classes.reshape(-1))
                mask_logits = mask_logits.reshape(*classes.shape, *mask_logits.shape[1:])
            masks = each_image(lambda o, s, t: mask_sum(o, s, t, c.roi.mask_crop_size, c.conventions))(mask_logits, samples, targets)
            positives = (samples.positive & samples.valid).sum()
            losses["mask"] = masks.sum() / jnp.maximum(positives, 1)
        return losses

    # ---- Detection ----

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """See `Detector.detect`; masks are 28 x 28 cells over each detection's box."""
        c = self.config
        levels = self.pyramid(images, image_sizes, train=False)
        _, proposals = self._propose(levels, images, image_sizes, train=False)
        logits, deltas, _ = self.predict_boxes(levels, proposals.boxes, train=False)
        keep = functools.partial(kept_regions, config=c.roi, conventions=c.conventions, implementation=c.implementation)
        boxes, kept = each_image(keep)(logits, deltas, proposals, image_sizes)
        masks = None
        if c.masks:
            masks = jax.nn.sigmoid(self.predict_masks(levels, boxes, kept.classes, train=False))
            masks = jnp.where(kept.valid[:, :, None, None], masks, 0.0)
        return Detections(boxes, kept.scores, kept.classes, kept.valid, masks)

    def initialize(self, images: Images) -> None:
        """See `Detector.initialize`."""
        levels = self.pyramid(images, whole_sizes(images), train=False)
        self.rpn(levels)
        nowhere = jnp.zeros((len(images), 1, 4))
        self.predict_boxes(levels, nowhere, train=False)
        if self.config.masks:
            self.predict_masks(levels, nowhere, jnp.zeros((len(images), 1), jnp.int32), train=False)
