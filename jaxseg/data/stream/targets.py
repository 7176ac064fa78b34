"""Ground truth as the losses take it: boxes in network pixels, masks at the losses' resolutions, packed to bits, padded."""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from jaxseg.data.sources.dataset import Sample
from jaxseg.data.views.box_masks import crop_masks
from jaxseg.data.views.image_masks import warp_masks
from jaxseg.data.views.placement import Placement, mask_frames, place_boxes, usable_boxes
from jaxseg.data.views.transforms import kept_objects, warp_boxes
from jaxseg.data.views.window import Window
from jaxseg.structures import InputSpec, Targets

# How the network sees a picture: a stretched window of it, or all of it in its proportions.
View = Window | Placement


def whole_view(picture_size: tuple[int, int], spec: InputSpec) -> View:
    """The picture of this height and width as evaluation shows it."""
    if spec.resize.rule == "stretch":
        return Window.whole(picture_size)
    return Placement.whole(picture_size, spec)


def visible_objects(sample: Sample, spec: InputSpec, view: View) -> Int[np.ndarray, "m"]:
    """The objects of an image that a view shows: all that its targets would hold if they had rows enough."""
    if isinstance(view, Window):
        return np.flatnonzero(kept_objects(sample.boxes, view, spec.image_sizes[0]))
    return np.flatnonzero(usable_boxes(sample.boxes, sample.image.shape[:2], spec.pixel_offset))


def to_targets(sample: Sample, spec: InputSpec, max_objects: int, view: View | None = None) -> Targets:
    """The targets of one image.

    Args:
        sample: an image with its objects, at any size.
        spec: what the detector wants: a stretched input comes with masks over the whole of it, one that keeps proportions
            with masks over boxes.
        max_objects: rows of the result. An image with more objects keeps the ordinary ones with the largest boxes, and
            crowds as far as there is room; the semantic masks hold all of its ordinary objects.
        view: what the network sees; None: the whole image.

    Returns:
        NumPy arrays. Objects that `visible_objects` leaves out are not in it; the others keep their order.

    Raises:
        ValueError: the detector wants masks, and the sample has none.
    """
    picture_size = sample.image.shape[:2]
    view = view or whole_view(picture_size, spec)
    kept = visible_objects(sample, spec, view)
    rows = kept[_largest(sample.boxes[kept], sample.crowd[kept], max_objects)]
    masks, semantic = None, None
    if isinstance(view, Window):
        boxes = warp_boxes(sample.boxes[rows], view, spec.image_sizes[0])
        if spec.mask_size is not None:
            masks = warp_masks(_masks(sample), rows, view, spec.image_sizes[0], spec.mask_size)
        if spec.semantic_size is not None:
            semantic = _semantic(sample, kept[~sample.crowd[kept]], view, spec.image_sizes[0], spec.num_classes, spec.semantic_size)
    else:
        boxes = place_boxes(sample.boxes[rows], picture_size, view, spec.pixel_offset)
        if spec.mask_size is not None:
            frames = mask_frames(boxes, picture_size, view, spec.pixel_offset)
            masks = crop_masks(_masks(sample), rows, frames, spec.mask_size, mirror=view.mirror)
    return Targets(
        boxes=_padded(boxes, max_objects),
        classes=_padded(sample.classes[rows].astype(np.int32), max_objects),
        valid=np.arange(max_objects) < len(rows),
        crowd=_padded(sample.crowd[rows], max_objects),
        masks=None if masks is None else _padded(np.packbits(masks, axis=-1), max_objects),
        semantic=None if semantic is None else np.packbits(semantic, axis=-1),
    )


def _masks(sample: Sample) -> UInt8[np.ndarray, "n H W"]:
    if sample.masks is None:
        raise ValueError("The detector learns masks, but its dataset was opened without; open it with the detector's own config.")
    return sample.masks


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    result = np.zeros((count, *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result


def _largest(boxes: Float32[np.ndarray, "n 4"], crowd: Bool[np.ndarray, "n"], count: int) -> Int[np.ndarray, "m"]:
    """At most `count` rows, ordinary objects before crowds, then the largest boxes; in their old order."""
    if len(boxes) <= count:
        return np.arange(len(boxes))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.sort(np.lexsort((-areas, crowd))[:count])


def _semantic(
    sample: Sample, rows: Int[np.ndarray, "m"], window: Window, network_size: tuple[int, int], num_classes: int, size: tuple[int, int]
) -> Bool[np.ndarray, "C h w"]:
    union = np.zeros((num_classes, *size), np.bool_)
    for label, mask in zip(sample.classes[rows], warp_masks(_masks(sample), rows, window, network_size, size), strict=True):
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
