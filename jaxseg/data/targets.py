"""Ground truth as the losses take it: boxes in network pixels, masks at the losses' resolutions, packed to bits, padded."""

import numpy as np
from jaxtyping import Bool, Float32, Int

from jaxseg.data.dataset import Sample
from jaxseg.data.masks import warp_masks
from jaxseg.data.transforms import kept_objects, warp_boxes
from jaxseg.data.window import Window
from jaxseg.structures import InputSpec, Targets


def to_targets(sample: Sample, spec: InputSpec, max_objects: int, window: Window | None = None) -> Targets:
    """The targets of one image.

    Args:
        sample: an image with its objects, at any size.
        spec: what the detector wants.
        max_objects: rows of the result. An image with more objects keeps the ordinary ones with the largest boxes, and
            crowds as far as there is room; the semantic masks hold all of its ordinary objects.
        window: the part of the image that the network sees; None: the whole image.

    Returns:
        NumPy arrays. Objects whose centre the window leaves out, or whose box has no area there, are not in it; the others
        keep their order.
    """
    window = window or Window.whole(sample.image.shape[:2])
    kept = np.flatnonzero(kept_objects(sample.boxes, window, spec.image_sizes[0]))
    rows = kept[_largest(sample.boxes[kept], sample.crowd[kept], max_objects)]
    count = len(rows)
    boxes = np.zeros((max_objects, 4), np.float32)
    boxes[:count] = warp_boxes(sample.boxes[rows], window, spec.image_sizes[0])
    classes = np.zeros(max_objects, np.int32)
    classes[:count] = sample.classes[rows]
    crowd = np.zeros(max_objects, bool)
    crowd[:count] = sample.crowd[rows]
    masks = np.zeros((max_objects, spec.mask_size[0], -(-spec.mask_size[1] // 8)), np.uint8)
    masks[:count] = np.packbits(warp_masks(sample.masks, rows, window, spec.image_sizes[0], spec.mask_size), axis=-1)
    return Targets(
        boxes=boxes,
        classes=classes,
        valid=np.arange(max_objects) < count,
        crowd=crowd,
        masks=masks,
        semantic=np.packbits(_semantic(sample, kept[~sample.crowd[kept]], spec, window), axis=-1),
    )


def _largest(boxes: Float32[np.ndarray, "n 4"], crowd: Bool[np.ndarray, "n"], count: int) -> Int[np.ndarray, "m"]:
    """At most `count` rows, ordinary objects before crowds, then the largest boxes; in their old order."""
    if len(boxes) <= count:
        return np.arange(len(boxes))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.sort(np.lexsort((-areas, crowd))[:count])


def _semantic(sample: Sample, rows: Int[np.ndarray, "m"], spec: InputSpec, window: Window) -> Bool[np.ndarray, "C h w"]:
    union = np.zeros((spec.num_classes, *spec.semantic_size), bool)
    for label, mask in zip(sample.classes[rows], warp_masks(sample.masks, rows, window, spec.image_sizes[0], spec.semantic_size), strict=True):
        union[label] |= mask
    return union


def no_targets(spec: InputSpec, max_objects: int) -> Targets:
    """The targets of an image without objects: padding only."""
    nothing = Sample(
        image=np.zeros((1, 1, 3), np.uint8),
        boxes=np.zeros((0, 4), np.float32),
        classes=np.zeros(0, np.int32),
        crowd=np.zeros(0, bool),
        masks=np.zeros((0, 1, 1), np.uint8),
        index=-1,
    )
    return to_targets(nothing, spec, max_objects)
