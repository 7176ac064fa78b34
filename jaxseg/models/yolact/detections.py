"""Post-processing: the detections that follow from YOLACT's raw outputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jaxseg.models.yolact.config import YolactConfig
from jaxseg.models.yolact.outputs import YolactOutputs, corner_scale
from jaxseg.ops.box_coder import ssd_decode
from jaxseg.ops.masks import assemble_masks, box_mask
from jaxseg.ops.nms import Kept, class_nms, cross_class_fast_nms, fast_nms
from jaxseg.structures import Detections


def image_detections(outputs: YolactOutputs, anchors: Float32[Array, "A 4"], config: YolactConfig) -> Detections:
    """Computes the detections of one image from its raw outputs.

    Masks are cropped to the detected boxes.

    Args:
        outputs: the outputs for one image.
        anchors: `cx, cy, w, h` as fractions of the input.
        config: the size of the input and the rules of suppression.
    """
    boxes = ssd_decode(outputs.box_deltas, anchors)
    kept = suppress(boxes, jax.nn.softmax(outputs.class_logits, -1)[:, 1:].T, config)
    kept_boxes = jnp.where(kept.valid[:, None], boxes[kept.indices], 0.0)
    height, width = outputs.prototypes.shape[:2]
    masks = assemble_masks(outputs.prototypes, outputs.mask_coefficients[kept.indices])
    inside = box_mask(kept_boxes * corner_scale((height, width)), (height, width)) & kept.valid[:, None, None]
    return Detections(
        boxes=kept_boxes * config.image_size,
        scores=kept.scores,
        classes=kept.classes,
        valid=kept.valid,
        masks=jnp.where(inside, masks, 0.0),
    )


def suppress(boxes: Float32[Array, "A 4"], scores: Float32[Array, "C A"], config: YolactConfig) -> Kept:
    """Applies the rule of non-maximum suppression that the configuration names.

    Args:
        boxes: `x1, y1, x2, y2` as fractions of the input.
        scores: the probabilities of the foreground classes.
        config: the settings; `detection` holds the rule and its thresholds.
    """
    rule, implementation = config.detection, config.implementation
    candidates = scores.max(0) > rule.score_threshold
    if rule.nms == "fast":
        return fast_nms(
            boxes,
            scores,
            candidates,
            iou_threshold=rule.iou_threshold,
            top_k=rule.top_k,
            max_detections=rule.max_detections,
            implementation=implementation,
        )
    if rule.nms == "cross_class":
        return cross_class_fast_nms(
            boxes, scores, candidates, iou_threshold=rule.iou_threshold, top_k=rule.top_k, implementation=implementation
        )
    return class_nms(
        boxes * config.image_size,
        scores.T,
        score_threshold=rule.score_threshold,
        iou_threshold=rule.iou_threshold,
        max_detections=rule.max_detections,
        # In the original's compiled routine x2 and y2 are a box's last pixels, and an IoU that
        # equals the threshold suppresses.
        pixel_offset=1.0,
        suppress_equal=True,
        implementation=implementation,
    )
