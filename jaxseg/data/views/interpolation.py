"""Where bilinear resizes look: two positions along an axis, and their weights.

Both libraries have half-pixel centres, repeat the edge and do not antialias; they differ in the
last bit.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int


def opencv_taps(length: int, size: int) -> tuple[Int[np.ndarray, "{size}"], Int[np.ndarray, "{size}"], Float32[np.ndarray, "{size}"]]:
    """Where `cv2.resize` of `length` pixels to `size` looks, the same in every version of OpenCV.

    Returns:
        The lower and upper pixel of each result, and the upper one's weight.
    """
    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    lower = np.floor(position).astype(np.int64)
    return np.clip(lower, 0, length - 1), np.clip(lower + 1, 0, length - 1), position - lower.astype(np.float32)


def torch_positions(length: float, size: int, cells: Float32[np.ndarray, "cells"]) -> Float32[np.ndarray, "cells"]:
    """The centres of some cells in pixels, where `length` pixels are resized to `size` cells.

    They are those of torch's `interpolate(mode="bilinear", align_corners=False)`, in its float32
    arithmetic step by step, because pixels near 0.5 depend on it.
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
        """From the first `covered` part of `length` pixels to `size` cells."""
        position = torch_positions(length * covered, size, np.arange(size, dtype=np.float32))
        lower = np.minimum(position.astype(np.int64), length - 1)
        weight = np.clip(position - lower.astype(np.float32), np.float32(0), np.float32(1))
        return cls(lower, np.minimum(lower + 1, length - 1), np.float32(1) - weight, weight)
