"""Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870)."""

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
from jaxseg.models.detector import detector_of
from jaxseg.models.fpn import FPN
from jaxseg.models.rcnn.config import RcnnConfig
from jaxseg.models.rcnn.mask_targets import mask_targets
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
from jaxseg.ops.images import Images
from jaxseg.ops.roi_align import pyramid_levels, roi_align
from jaxseg.structures import Batch, Detections


@struct.dataclass
class RcnnOutputs:
    """The raw outputs for `A` anchors and `P` proposals.

    Anchors are in the order level, y, x, shape, and proposals in descending order of their scores.
    The last class logit is the background's.
    """

    objectness: Float32[Array, "B A"]
    anchor_deltas: Float32[Array, "B A 4"]
    proposals: Float32[Array, "B P 4"]
    proposals_valid: Bool[Array, "B P"]
    class_logits: Float32[Array, "B P C1"]
    box_deltas: Float32[Array, "B P C 4"]


@detector_of(RcnnConfig)
class Rcnn(AnchoredDetector):
    """An R-CNN: a backbone, a neck, a region proposal network, and heads for the regions."""

    config: RcnnConfig

    def setup(self) -> None:
        c, trunk = self.config, self.config.backbone
        is_c4 = c.neck == "c4"
        self.backbone = build_backbone(trunk, c.batch_norm, self.dtype, stages=3 if is_c4 else 4, dilated_c5=c.neck == "dilated_c5")
        if c.neck == "fpn":
            self.fpn = FPN(c.fpn_channels, "rcnn", self.dtype)
        # The RPN's convolution has as many channels as its input.
        channels = {"fpn": c.fpn_channels, "c4": 16 * trunk.width, "dilated_c5": 32 * trunk.width}[c.neck]
        self.rpn = RpnHead(channels, len(c.anchor_sizes[0]) * len(c.anchor_aspect_ratios), self.dtype)
        if is_c4:
            self.box_head: nn.Module = C5Head(
                blocks=trunk.stage_sizes[3],
                width=8 * trunk.width,
                stride_in_1x1=trunk.stride_in_1x1,
                norm=trunk.norm,
                norm_mode=c.batch_norm,
                norm_epsilon=trunk.norm_epsilon,
                dtype=self.dtype,
            )
        else:
            self.box_head = BoxHead(c.roi.box_features, self.dtype)
        self.box_predictor = BoxPredictor(c.num_classes, self.dtype)
        if c.masks:
            self.mask_head = MaskHead(c.roi.mask_channels, 0 if is_c4 else c.roi.mask_convolutions, c.num_classes, self.dtype)

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the levels that anchors lie on; regions are pooled from all but P6."""
        return (4, 8, 16, 32, 64) if self.config.neck == "fpn" else (16,)

    @property
    def mask_crop_size(self) -> int | None:
        return self.config.roi.mask_crop_size if self.config.masks else None

    @property
    def mask_pool(self) -> int:
        roi = self.config.roi
        return {"cells": 0, "polygons": roi.mask_points, "bitmaps": roi.mask_bytes}[self.config.conventions.mask_targets]

    # ---- The network ----

    def pyramid(self, images: Images, image_sizes: Int32[Array, "B 2"], *, train: bool) -> Levels:
        """Returns the levels that anchors lie on and regions are pooled from, the finest first."""
        features = self.backbone(self.trunk_input(images, image_sizes), train=train)
        return self.fpn(features) if self.config.neck == "fpn" else features[-1:]

    def pool(self, levels: Levels, boxes: Float32[Array, "B R 4"], size: int) -> Float[Array, "n s s c"]:
        """Applies RoIAlign to each region at its level.

        Args:
            levels: the levels of the pyramid.
            boxes: the regions of each image, in pixels of the network's input.
            size: the side of the result in cells.

        Returns:
            The pooled regions of all images along one axis.
        """
        rules = self.config.conventions
        if self.is_initializing():
            # Parameters depend on the shape only.
            return jnp.zeros((boxes.shape[0] * boxes.shape[1], size, size, levels[0].shape[-1]), levels[0].dtype)
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
        """Returns the class logits and box deltas of each region.

        With a C4 neck, the third value is the map that the head computes, from which masks are
        predicted; otherwise it is None.
        """
        # The stride of C5 halves the pooled regions.
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
        """Returns each region's mask logits for its class."""
        pooled = self.pool(levels, boxes, self.config.roi.mask_size)
        if self.config.neck == "c4":
            pooled = self.box_head(pooled, train=train)
        logits = self.mask_head(pooled, classes.reshape(-1))
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])

    def __call__(self, images: Images, image_sizes: Int32[Array, "B 2"] | None = None) -> RcnnOutputs:
        """Returns the raw outputs.

        Args:
            images: RGB images in 0..255, padded to the network's input size.
            image_sizes: the height and width of each picture within its image; by default,
                pictures fill their images.
        """
        if image_sizes is None:
            image_sizes = whole_sizes(images)
        levels = self.pyramid(images, image_sizes, train=False)
        outputs, proposals = self._propose(levels, images, image_sizes, train=False)
        logits, deltas, _ = self.predict_boxes(levels, proposals.boxes, train=False)
        objectness, anchor_deltas = (jnp.concatenate(values, 1) for values in outputs)
        return RcnnOutputs(
            objectness=objectness,
            anchor_deltas=anchor_deltas,
            proposals=proposals.boxes,
            proposals_valid=proposals.valid,
            class_logits=logits,
            box_deltas=deltas,
        )

    def _propose(self, levels: Levels, images: Images, image_sizes: Int32[Array, "B 2"], *, train: bool) -> tuple[RpnOutputs, Proposals]:
        c, outputs = self.config, self.rpn(levels)
        anchors = self.anchors(levels, images)
        proposals = propose(
            outputs,
            anchors,
            image_sizes,
            config=c.rpn,
            conventions=c.conventions,
            implementation=c.implementation,
            train=train,
        )
        return outputs, proposals

    # ---- Training ----

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """See `Detector.losses`.

        `rpn_class` and `rpn_box` are losses of the sampled anchors, `class` and `box` of the
        sampled regions, and `mask` of the positive regions.
        """
        c = self.config
        images, image_sizes, targets = jnp.asarray(batch.images), jnp.asarray(batch.image_sizes), batch.targets
        levels = self.pyramid(images, image_sizes, train=train)
        outputs, proposals = self._propose(levels, images, image_sizes, train=train)
        anchors = np.concatenate(self.anchors(levels, images))

        anchor_key, region_key = jax.random.split(self.make_rng("sampling"))
        rpn_of_image = functools.partial(rpn_sums, anchors=anchors, config=c.rpn, conventions=c.conventions)
        priorities = jax.random.uniform(anchor_key, (len(images), len(anchors)))
        rpn = each_image(rpn_of_image)(outputs, targets, image_sizes, priorities)
        sample = functools.partial(sample_regions, num_classes=c.num_classes, config=c.roi, conventions=c.conventions)
        candidates = proposals.valid.shape[1] + targets.valid.shape[1]
        samples = each_image(sample)(proposals, targets, jax.random.uniform(region_key, (len(images), candidates)))
        samples = samples._replace(valid=samples.valid & batch.valid[:, None])
        return rpn_losses(rpn, jnp.asarray(batch.valid), c.rpn, c.conventions) | self.region_losses(levels, samples, batch, train=train)

    def region_losses(self, levels: Levels, samples: RoiSamples, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """Returns the losses of the heads on sampled regions."""
        c, targets = self.config, batch.targets
        logits, deltas, shared = self.predict_boxes(levels, samples.boxes, train=train)
        sums = each_image(functools.partial(region_sums, conventions=c.conventions))(logits, deltas, samples, targets)
        total = jnp.maximum(sums.samples.sum(), 1)
        losses = {"class": sums.classification.sum() / total, "box": sums.box.sum() / total}
        if c.masks:
            # Positive regions come first, and there are at most this many.
            count = int(c.roi.samples * c.roi.positive_fraction)
            boxes, classes = samples.boxes[:, :count], jnp.minimum(samples.classes[:, :count], c.num_classes - 1)
            if shared is None:
                mask_logits = self.predict_masks(levels, boxes, classes, train=train)
            else:
                shared = shared.reshape(*samples.valid.shape, *shared.shape[1:])[:, :count]
                mask_logits = self.mask_head(shared.reshape(-1, *shared.shape[2:]), classes.reshape(-1))
                mask_logits = mask_logits.reshape(*classes.shape, *mask_logits.shape[1:])
            make_targets = functools.partial(
                mask_targets,
                size=mask_logits.shape[-1],
                crop_size=c.roi.mask_crop_size,
                longest=max(batch.images.shape[1:3]),
                conventions=c.conventions,
            )
            truth = each_image(make_targets)(boxes, samples.objects[:, :count], targets, jnp.asarray(batch.image_sizes))
            masks = each_image(mask_sum)(mask_logits, truth, (samples.positive & samples.valid)[:, :count])
            positives = (samples.positive & samples.valid).sum()
            losses["mask"] = masks.sum() / jnp.maximum(positives, 1)
        return losses

    # ---- Detection ----

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """See `Detector.detect`; a mask has 28 x 28 cells, which cover the detection's box."""
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
        return Detections(boxes=boxes, scores=kept.scores, classes=kept.classes, valid=kept.valid, masks=masks)

    def initialize(self, images: Images) -> None:
        """See `Detector.initialize`."""
        levels = self.pyramid(images, whole_sizes(images), train=False)
        self.rpn(levels)
        nowhere = jnp.zeros((len(images), 1, 4))
        self.predict_boxes(levels, nowhere, train=False)
        if self.config.masks:
            self.predict_masks(levels, nowhere, jnp.zeros((len(images), 1), jnp.int32), train=False)
