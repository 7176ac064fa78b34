"""The shapes of RoIAlign."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops.roi_align import pyramid_levels
from model_shapes.inputs import boxes_around_objects
from model_shapes.presets import ADAPTIVE_SAMPLES, C4, DILATED_C5, FIXED_SAMPLES, preset


class RoiAlignInputs(NamedTuple):
    """The inputs of one call.

    Attributes:
        features: the levels of the pyramid, the finest first.
        boxes: `x1, y1, x2, y2` in pixels of the network's input.
        levels: the index of the level of each box.
        gradient: a gradient of the result.
    """

    features: tuple[jax.Array, ...]
    boxes: np.ndarray
    levels: np.ndarray
    gradient: jax.Array


@dataclasses.dataclass(frozen=True)
class RoiAlignShape:
    """One call of `roi_align`.

    Attributes:
        name: the name in tables and tests.
        source: the preset that the shape comes from.
        batch: the number of images.
        rois: the number of RoIs of each image.
        input_size: the height and width of the network's input.
        strides: the stride of each level.
        channels: the number of channels of the levels.
        output_size: see `roi_align`.
        sampling_ratio: see `roi_align`.
        aligned: see `roi_align`.
        training: whether the gradient is also computed.
    """

    name: str
    source: str
    batch: int
    rois: int
    input_size: tuple[int, int]
    strides: tuple[int, ...]
    channels: int
    output_size: int
    sampling_ratio: int
    aligned: bool
    training: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `roi_align`."""
        names = ("strides", "output_size", "sampling_ratio", "aligned")
        return {name: getattr(self, name) for name in names}

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """The height and width of each level."""
        height, width = self.input_size
        return tuple((math.ceil(height / stride), math.ceil(width / stride)) for stride in self.strides)

    def inputs(self, seed: int, dtype: Any = jnp.float32) -> RoiAlignInputs:
        """Makes inputs with noise as features and as gradient.

        The last RoIs are special: padding, one that extends beyond the image, and one per level.
        """
        rng = np.random.default_rng(seed)
        boxes = boxes_around_objects(rng, (self.batch, self.rois), self.input_size)
        height, width = self.input_size
        boxes[:, -1] = 0.0
        boxes[:, -2] = (-0.1 * width, 0.7 * height, 0.2 * width, 1.1 * height)
        levels = np.zeros((self.batch, self.rois), np.int32)
        if len(self.strides) > 1:
            levels = np.asarray(pyramid_levels(boxes), np.int32) - 2
            levels[:, -len(self.strides) :] = np.arange(len(self.strides))
        keys = jax.random.split(jax.random.key(seed), len(self.strides) + 1)
        features = tuple(
            jax.random.normal(key, (self.batch, *size, self.channels), dtype) for key, size in zip(keys, self.level_sizes, strict=False)
        )
        shape = (self.batch, self.rois, self.output_size, self.output_size, self.channels)
        return RoiAlignInputs(features, boxes, levels, jax.random.normal(keys[-1], shape, dtype))

    def tiny(self) -> "RoiAlignShape":
        """Returns a shape with the same conventions for four RoIs of two small images."""
        return dataclasses.replace(self, batch=2, rois=4, input_size=(96, 160), channels=128, output_size=2)


def _of_regions(name: str, source: str, batch: int, *, training: bool, masks: bool = False, portrait: bool = False) -> RoiAlignShape:
    """Makes the shape of the RoIs that an R-CNN pools for boxes, or for masks."""
    model: Any = preset(source).model
    roi = model.roi
    if masks:
        rois = int(roi.samples * roi.positive_fraction) if training else roi.max_detections
    else:
        rois = roi.samples if training else model.rpn.post_nms_test
    # With a C4 neck the head starts with a stride of 2.
    box_size = 2 * roi.box_size if model.neck == "c4" else roi.box_size
    channels = {"fpn": model.fpn_channels, "c4": 16 * model.backbone.width, "dilated_c5": 32 * model.backbone.width}
    return RoiAlignShape(
        name=name,
        source=source,
        batch=batch,
        rois=rois,
        input_size=model.input.padded_shapes[1 if portrait else 0],
        strides=(4, 8, 16, 32) if model.neck == "fpn" else (16,),
        channels=channels[model.neck],
        output_size=roi.mask_size if masks else box_size,
        sampling_ratio=model.conventions.roi_sampling_ratio,
        aligned=model.conventions.roi_aligned,
        training=training,
    )


ROI_ALIGN_SHAPES = (
    _of_regions("train_boxes", FIXED_SAMPLES, 2, training=True),
    _of_regions("train_masks", FIXED_SAMPLES, 2, training=True, masks=True),
    _of_regions("train_boxes_adaptive", ADAPTIVE_SAMPLES, 2, training=True),
    _of_regions("train_masks_adaptive", ADAPTIVE_SAMPLES, 2, training=True, masks=True),
    _of_regions("train_boxes_portrait", FIXED_SAMPLES, 2, training=True, portrait=True),
    _of_regions("train_c4", C4, 2, training=True),
    _of_regions("train_dilated_c5", DILATED_C5, 2, training=True),
    _of_regions("detect_boxes", FIXED_SAMPLES, 1, training=False),
    _of_regions("detect_masks", FIXED_SAMPLES, 1, training=False, masks=True),
    _of_regions("detect_boxes_adaptive", ADAPTIVE_SAMPLES, 1, training=False),
    _of_regions("detect_masks_adaptive", ADAPTIVE_SAMPLES, 1, training=False, masks=True),
    _of_regions("detect_boxes_batch8", FIXED_SAMPLES, 8, training=False),
    _of_regions("detect_masks_batch8", FIXED_SAMPLES, 8, training=False, masks=True),
)
