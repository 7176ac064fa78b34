"""The positions and weights of bilinear interpolation along an axis, as in OpenCV and in torch.

Both libraries use half-pixel centres, repeat the pixels at the edge and do not antialias. They
differ in the last bit.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int


def opencv_taps(length: int, size: int) -> tuple[Int[np.ndarray, "{size}"], Int[np.ndarray, "{size}"], Float32[np.ndarray, "{size}"]]:
    """Returns the pixels that `cv2.resize` reads when it resizes `length` pixels to `size`.

    They are the same in every version of OpenCV.

    Returns:
        The lower and the upper pixel for each pixel of the result, and the weight of the upper one.
    """
    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    lower = np.floor(position).astype(np.int64)
    return np.clip(lower, 0, length - 1), np.clip(lower + 1, 0, length - 1), position - lower.astype(np.float32)


def torch_positions(length: float, size: int, cells: Float32[np.ndarray, "cells"]) -> Float32[np.ndarray, "cells"]:
    """Returns the centres of some cells in pixels, if `length` pixels are resized to `size` cells.

    They are those of torch's `interpolate(mode="bilinear", align_corners=False)`. Its float32
    arithmetic is followed step by step, because pixels with values near 0.5 depend on it.
    """
    scale = np.float32(length) / np.float32(size)
    return np.maximum(scale * (cells + np.float32(0.5)) - np.float32(0.5), np.float32(0))


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """One axis of torch's bilinear interpolation: two positions and their weights for each cell."""

    lower: Int[np.ndarray, "cells"]
    upper: Int[np.ndarray, "cells"]
    lower_weight: Float32[np.ndarray, "cells"]
    upper_weight: Float32[np.ndarray, "cells"]

    @classmethod
    def between(cls, length: int, size: int, covered: float = 1.0) -> "Interpolation":
        """Makes the interpolation from the first `covered` fraction of `length` pixels to cells."""
        position = torch_positions(length * covered, size, np.arange(size, dtype=np.float32))
        lower = np.minimum(position.astype(np.int64), length - 1)
        weight = np.clip(position - lower.astype(np.float32), np.float32(0), np.float32(1))
        return cls(lower, np.minimum(lower + 1, length - 1), np.float32(1) - weight, weight)
