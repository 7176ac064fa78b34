"""RoIAlign of whole bitmaps, by which mmdetection and torchvision make the targets of masks."""

import numpy as np


def bitmap_target(bitmap: np.ndarray, region: np.ndarray, size: int, *, soft: bool) -> np.ndarray:
    """Applies RoIAlign to a bitmap at the size of the network's input.

    mmdetection's RoIAlign is aligned and its result is thresholded at one half; torchvision's is
    not aligned, and its result (`soft`) is not thresholded.
    """
    down = _means(bitmap.shape[0], region[1], region[3], size, aligned=not soft)
    across = _means(bitmap.shape[1], region[0], region[2], size, aligned=not soft)
    covered = down @ bitmap @ across.T
    # Sums that are one half in exact arithmetic count, too.
    return covered if soft else covered >= 0.5 - 1e-9


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
