"""Anchors, made in NumPy from static sizes: they are constants of the compiled program."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32


def yolact_anchors(
    image_size: int,
    level_sizes: Sequence[tuple[int, int]],
    scales: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    *,
    square: bool,
) -> Float32[np.ndarray, "A 4"]:
    """YOLACT's priors, `cx, cy, w, h` as fractions of the input; order: level, y, x, scale, aspect ratio.

    Args:
        image_size: side of the square input in pixels, the scales' unit.
        level_sizes: height and width of each pyramid level. Cells share the input evenly, whatever the stride is.
        scales: of each level, in pixels.
        aspect_ratios: width over height.
        square: overwrite heights by widths, as the code that trained the published YOLACT weights did
            (its anchors are squares of scale * sqrt(ratio); corrected for Pascal and YOLACT++).

    Raises:
        ValueError: when there are not as many levels as groups of scales.
    """
    if len(level_sizes) != len(scales):
        raise ValueError(f"{len(level_sizes)} levels but scales for {len(scales)}.")
    levels = []
    for (rows, columns), level_scales in zip(level_sizes, scales, strict=True):
        widths = np.array([scale * np.sqrt(ratio) / image_size for scale in level_scales for ratio in aspect_ratios])
        heights = widths if square else np.array([scale / np.sqrt(ratio) / image_size for scale in level_scales for ratio in aspect_ratios])
        cells = np.empty((rows, columns, len(widths), 4))
        cells[..., 0] = ((np.arange(columns) + 0.5) / columns)[None, :, None]
        cells[..., 1] = ((np.arange(rows) + 0.5) / rows)[:, None, None]
        cells[..., 2] = widths
        cells[..., 3] = heights
        levels.append(cells.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)
