"""Ground truth in the form that the losses take.

Boxes are in pixels of the network's input, masks are bits at the resolutions of the losses, and
everything is padded to a fixed number of rows.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from jaxseg.data.sources.dataset import Sample
from jaxseg.data.views.bitmaps import pack_bitmaps
from jaxseg.data.views.box_masks import crop_masks
from jaxseg.data.views.outlines import pack_polygons
from jaxseg.data.views.view import View
from jaxseg.structures import BitmapPool, InputSpec, PolygonPool, Targets


def to_targets(sample: Sample, view: View, spec: InputSpec, max_objects: int) -> Targets:
    """Makes the targets of one picture.

    Args:
        sample: a picture with its objects.
        view: the view of the picture that the network sees.
        spec: the input that the detector requires.
        max_objects: the number of rows of the result. If a picture has more objects, the ordinary
            ones with the largest boxes are kept, and crowd regions only if rows are left. The
            semantic masks contain all of its ordinary objects.

    Returns:
        Targets as NumPy arrays. Objects that the view does not keep are left out; the others keep
        their order.

    Raises:
        ValueError: the detector requires masks, and the sample has none.
    """
    kept = np.flatnonzero(view.keeps(sample.boxes))
    rows = kept[_largest(sample.boxes[kept], sample.crowd[kept], max_objects)]
    boxes = view.boxes_in_input(sample.boxes[rows])
    polygons = _polygons(sample, rows, view, spec, max_objects)
    masks = _masks(sample, rows, boxes, view, spec, polygons)
    semantic = _semantic(sample, kept[~sample.crowd[kept]], view, spec)
    return Targets(
        boxes=_padded(boxes, max_objects),
        classes=_padded(sample.classes[rows].astype(np.int32), max_objects),
        valid=np.arange(max_objects) < len(rows),
        crowd=_padded(sample.crowd[rows], max_objects),
        masks=None if masks is None else _padded(np.packbits(masks, axis=-1), max_objects),
        semantic=None if semantic is None else np.packbits(semantic, axis=-1),
        polygons=polygons,
        bitmaps=_bitmaps(sample, rows, view, spec, max_objects),
    )


def no_targets(spec: InputSpec, max_objects: int, input_size: tuple[int, int]) -> Targets:
    """Makes the targets of a picture without objects, in an input of this height and width."""
    mask_size, semantic_size = spec.mask_size_in(input_size), spec.semantic_size_in(input_size)
    kind, room, empty = spec.mask_targets if mask_size else None, spec.mask_pool, np.zeros(max_objects, np.int32)
    polygons = PolygonPool(np.zeros((room, 2), np.float32), np.zeros(room, np.uint8), empty, empty)
    bitmaps = BitmapPool(np.zeros(room, np.uint8), empty, np.zeros((max_objects, 2), np.int32), np.zeros((max_objects, 4), np.float32))
    return Targets(
        boxes=np.zeros((max_objects, 4), np.float32),
        classes=np.zeros(max_objects, np.int32),
        valid=np.zeros(max_objects, bool),
        crowd=np.zeros(max_objects, bool),
        masks=None if mask_size is None or kind == "bitmaps" else np.zeros((max_objects, *_packed(mask_size)), np.uint8),
        semantic=None if semantic_size is None else np.zeros((spec.num_classes, *_packed(semantic_size)), np.uint8),
        polygons=polygons if kind == "polygons" else None,
        bitmaps=bitmaps if kind == "bitmaps" else None,
    )


def _packed(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the height and the width in bytes of masks of this size that are packed as bits."""
    return size[0], -(-size[1] // 8)


def _largest(boxes: Float32[np.ndarray, "n 4"], crowd: Bool[np.ndarray, "n"], count: int) -> Int[np.ndarray, "m"]:
    """Selects at most `count` rows: the largest ordinary objects, then the largest crowd regions.

    The rows keep their original order.
    """
    if len(boxes) <= count:
        return np.arange(len(boxes))
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return np.sort(np.lexsort((-areas, crowd))[:count])


def _masks(
    sample: Sample,
    rows: Int[np.ndarray, "m"],
    boxes: Float32[np.ndarray, "m 4"],
    view: View,
    spec: InputSpec,
    polygons: PolygonPool | None,
) -> Bool[np.ndarray, "m h w"] | None:
    """Makes the masks of some objects, over the input or each over its box in the input.

    Objects with polygons have empty masks.
    """
    size = spec.mask_size_in(view.input_size)
    if size is None or spec.mask_targets == "bitmaps":
        return None
    if spec.mask_frame == "image":
        return view.masks_over_input(_full_masks(sample), rows, size)
    if polygons is None:
        return crop_masks(_full_masks(sample), rows, view.mask_frames(boxes), size, mirror=view.mirror)
    result, others = np.zeros((len(rows), *size), bool), np.flatnonzero(polygons.counts[: len(rows)] == 0)
    result[others] = crop_masks(_full_masks(sample), rows[others], view.mask_frames(boxes[others]), size, mirror=view.mirror)
    return result


def _polygons(sample: Sample, rows: Int[np.ndarray, "m"], view: View, spec: InputSpec, max_objects: int) -> PolygonPool | None:
    """Packs the polygons of some objects; no loss learns from crowd regions."""
    if spec.mask_size is None or spec.mask_targets != "polygons":
        return None
    known = sample.polygons or [None] * len(sample.boxes)
    polygons = [None if sample.crowd[row] else known[row] for row in rows]
    return pack_polygons(polygons, view, points=spec.mask_pool, rows=max_objects)


def _bitmaps(sample: Sample, rows: Int[np.ndarray, "m"], view: View, spec: InputSpec, max_objects: int) -> BitmapPool | None:
    """Packs the bitmaps of some objects; no loss learns from crowd regions."""
    if spec.mask_size is None or spec.mask_targets != "bitmaps":
        return None
    # torchvision's pictures and masks are mirrored before they are resized.
    mirrored_first = spec.resize.rule == "float"
    objects = np.where(sample.crowd[rows], -1, rows)
    return pack_bitmaps(_full_masks(sample), objects, view, mirrored_first=mirrored_first, room=spec.mask_pool, rows=max_objects)


def _semantic(sample: Sample, rows: Int[np.ndarray, "m"], view: View, spec: InputSpec) -> Bool[np.ndarray, "C h w"] | None:
    """Makes the union of the masks of some objects over the input, for each class."""
    size = spec.semantic_size_in(view.input_size)
    if size is None:
        return None
    union = np.zeros((spec.num_classes, *size), np.bool_)
    for label, mask in zip(sample.classes[rows], view.masks_over_input(_full_masks(sample), rows, size), strict=True):
        union[label] |= mask
    return union


def _full_masks(sample: Sample) -> UInt8[np.ndarray, "n H W"]:
    if sample.masks is None:
        raise ValueError("The detector learns masks, but its dataset was opened without; open it with the detector's own config.")
    return sample.masks


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    result = np.zeros((count, *rows.shape[1:]), rows.dtype)
    result[: len(rows)] = rows
    return result
