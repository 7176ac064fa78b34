"""Mask targets as the four originals make them, from polygons or bitmaps of the whole picture."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as coco_mask
from rcnn_originals import RcnnRun


def original_mask_targets(run: RcnnRun) -> Callable[..., jax.Array]:
    """Returns a replacement for `jaxseg.ops.masks.box_mask_targets`.

    It identifies objects by their frames and ignores the crops.
    """
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
    """Draws the object's polygon over its region at `size` x `size` cells.

    This is the way of maskrcnn-benchmark and detectron2.
    """
    scale = size / np.maximum(region[2:] - region[:2], 1.0)
    points = (np.reshape(run.polygons(image)[index], (-1, 2)) - region[:2]) * scale
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], size, size)))


def _bitmap(run: RcnnRun, image: int, index: int, region: np.ndarray, size: int) -> np.ndarray:
    """Applies RoIAlign to the object's bitmap at the size of the network's input.

    mmdetection's RoIAlign is aligned and its result is thresholded at one half; torchvision's is
    not aligned and its result is not thresholded.
    """
    soft = run.name.startswith("tv")
    bitmap = run.bitmaps(image)[index]
    if soft:
        # The resize takes the nearest pixel. The region is shifted because this RoIAlign is not
        # aligned.
        rows, columns = (np.arange(to) * of // to for to, of in zip(run.inputs()[1][image], bitmap.shape, strict=True))
        bitmap, region = bitmap[rows][:, columns], region - 0.5
    down = _means(bitmap.shape[0], region[1], region[3], size, aligned=not soft)
    across = _means(bitmap.shape[1], region[0], region[2], size, aligned=not soft)
    covered = down @ bitmap @ across.T
    return covered if soft else covered >= 0.5


def _means(length: int, start: float, stop: float, size: int, *, aligned: bool) -> np.ndarray:
    """Returns the weights `[size, length]` of RoIAlign along one axis.

    A cell has as many samples as it has pixels.
    """
    start, extent = (start - 0.5, stop - start) if aligned else (start, max(stop - start, 1.0))
    samples = int(np.ceil(extent / size))
    positions = start + (np.arange(size)[:, None] + (np.arange(samples) + 0.5) / samples) * extent / size
    inside = (positions >= -1) & (positions <= length)
    positions = np.clip(positions, 0, length - 1)
    taps = np.maximum(1 - np.abs(positions[:, :, None] - np.arange(length)), 0) * inside[:, :, None]
    return taps.mean(1)
