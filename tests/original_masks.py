"""Mask targets as the four originals make them, of polygons or whole bitmaps, for any region that comes along in a program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask
from rcnn_originals import RcnnRun


def original_mask_targets(run: RcnnRun) -> Callable[..., jax.Array]:
    """Stands in for `jaxseg.ops.masks.box_mask_targets`; objects are told by their frames, crops are not looked at."""
    truth = run.batch().targets
    frames = np.concatenate([truth.boxes[i][truth.valid[i]] for i in (0, 1)])
    frames[:, 2:] += run.model.input_spec.pixel_offset
    images = np.repeat((0, 1), truth.valid.sum(1))
    objects = np.concatenate([np.arange(count) for count in truth.valid.sum(1)])
    draw = _polygon if run.name.startswith(("mrb", "d2")) else _bitmap

    def on_host(wanted: np.ndarray, regions: np.ndarray, size: int) -> np.ndarray:
        nearest = np.abs(np.asarray(wanted)[:, None] - frames).max(2).argmin(1)
        result = np.zeros((len(regions), size, size), np.float32)
        for target, row, region in zip(result, nearest, np.asarray(regions, np.float64), strict=True):
            if (region[2:] > region[:2]).all():
                target[:] = draw(run, images[row], objects[row], region, size)
        return result

    def targets(crops: jax.Array, wanted: jax.Array, regions: jax.Array, size: int) -> jax.Array:
        del crops
        shape = jax.ShapeDtypeStruct((len(regions), size, size), jnp.float32)
        return jax.pure_callback(lambda *arrays: on_host(*arrays, size), shape, wanted, regions, vmap_method="sequential")

    return targets


def _polygon(run: RcnnRun, image: int, index: int, region: np.ndarray, size: int) -> np.ndarray:
    """The object's polygon in its region's frame, drawn at `size` x `size` cells (maskrcnn-benchmark, detectron2)."""
    scale = size / np.maximum(region[2:] - region[:2], 1.0)
    points = (np.reshape(run.polygons(image)[index], (-1, 2)) - region[:2]) * scale
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], size, size)))


def _bitmap(run: RcnnRun, image: int, index: int, region: np.ndarray, size: int) -> np.ndarray:
    """RoIAlign of the object's bitmap at network size: aligned and cut at one half (mmdetection), or neither (torchvision)."""
    soft = run.name.startswith("tv")
    bitmap = run.bitmaps(image)[index]
    if soft:
        # Resized by the nearest pixel; and our region is shifted to make up for what is not aligned here.
        rows, columns = (np.arange(to) * of // to for to, of in zip(run.inputs()[1][image], bitmap.shape, strict=True))
        bitmap, region = bitmap[rows][:, columns], region - 0.5
    down = _means(bitmap.shape[0], region[1], region[3], size, aligned=not soft)
    across = _means(bitmap.shape[1], region[0], region[2], size, aligned=not soft)
    covered = down @ bitmap @ across.T
    return covered if soft else covered >= 0.5


def _means(length: int, start: float, stop: float, size: int, *, aligned: bool) -> np.ndarray:
    """Weights `[size, length]` of RoIAlign along one axis, with as many samples a cell as it has pixels."""
    start, extent = (start - 0.5, stop - start) if aligned else (start, max(stop - start, 1.0))
    samples = int(np.ceil(extent / size))
    positions = start + (np.arange(size)[:, None] + (np.arange(samples) + 0.5) / samples) * extent / size
    inside = (positions >= -1) & (positions <= length)
    positions = np.clip(positions, 0, length - 1)
    taps = np.maximum(1 - np.abs(positions[:, :, None] - np.arange(length)), 0) * inside[:, :, None]
    return taps.mean(1)
