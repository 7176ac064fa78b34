"""The resize of binary masks as torch does it, written in NumPy."""

import numpy as np

from jaxseg.data.views.interpolation import Interpolation


def resize_binary_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes masks `[n, H, W]` of 0 and 1 to another size; the results are binary again.

    This is `F.interpolate(masks.float(), size, mode="bilinear", align_corners=False) > 0.5`.
    """
    rows, columns = (Interpolation.between(length, cells) for length, cells in zip(masks.shape[1:], size, strict=True))
    values = masks.astype(np.float32)
    values = values[:, :, columns.lower] * columns.lower_weight + values[:, :, columns.upper] * columns.upper_weight
    return values[:, rows.lower] * rows.lower_weight[:, None] + values[:, rows.upper] * rows.upper_weight[:, None] > 0.5
