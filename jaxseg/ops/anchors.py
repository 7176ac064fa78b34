"""Anchors, made in NumPy from static sizes: they are constants of the compiled program. And which of them a picture uses."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.boxes import Size
from jaxseg.structures import AnyArray

AnchorRule = Literal["exact", "legacy", "rounded"]


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


def cell_anchors(
    sizes: Sequence[int | float], aspect_ratios: Sequence[float], *, stride: int, rule: AnchorRule
) -> Float32[np.ndarray, "S 4"]:
    """R-CNN's anchors of the first cell of a level, `x1, y1, x2, y2` in pixels; order: aspect ratio, size.

    Args:
        sizes: square roots of the areas, in pixels. RetinaNet's octaves are sizes: s, s * 2**(1/3), s * 2**(2/3).
        aspect_ratios: height over width.
        stride: of the level in pixels; only the rule "legacy" asks.
        rule: "exact" centres them on (0, 0), as mmdetection and detectron2. "rounded" rounds those corners, as
            torchvision. "legacy" is the first Faster R-CNN's way, as maskrcnn-benchmark: it centres them on the middle
            of a cell, and scales a window of the cell's size whose sides it has rounded; x2 and y2 name the last pixel.
    """
    scale, ratio = np.array(sizes, np.float64)[None, :], np.array(aspect_ratios, np.float64)[:, None]
    if rule == "legacy":
        width = np.round(stride / np.sqrt(ratio))
        height = np.round(width * ratio) * (scale / stride)
        width = width * (scale / stride)
        low, high = (stride - 1) / 2, -1.0
    else:
        width, height = scale / np.sqrt(ratio), scale * np.sqrt(ratio)
        low, high = 0.0, 0.0
    half = np.stack([width + high, height + high], -1).reshape(-1, 2) / 2
    corners = np.concatenate([low - half, low + half], -1)
    return (np.round(corners) if rule == "rounded" else corners).astype(np.float32)


def grid_anchors(
    cells: Float32[np.ndarray, "S 4"], stride: int | tuple[int, int], level_size: tuple[int, int]
) -> Float32[np.ndarray, "A 4"]:
    """The anchors of one cell at every cell of a level; order: y, x, anchor.

    Args:
        cells: of `cell_anchors`.
        stride: pixels from cell to cell, or vertically and horizontally.
        level_size: height and width of the level in cells.
    """
    stride_y, stride_x = (stride, stride) if isinstance(stride, int) else stride
    y, x = np.meshgrid(np.arange(level_size[0]) * stride_y, np.arange(level_size[1]) * stride_x, indexing="ij")
    shifts = np.stack([x, y, x, y], -1).astype(np.float32)
    return (shifts[:, :, None] + cells).reshape(-1, 4)


def pyramid_anchors(
    level_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[int | float]],
    aspect_ratios: Sequence[float],
    *,
    rule: AnchorRule,
    canvas: tuple[int, int] | None = None,
) -> list[Float32[np.ndarray, "_ 4"]]:
    """R-CNN's anchors of each level, `x1, y1, x2, y2` in pixels; order: y, x, aspect ratio, size.

    Args:
        level_sizes: height and width of each level in cells.
        strides: of each level.
        sizes: of each level, see `cell_anchors`.
        aspect_ratios: height over width.
        rule: see `cell_anchors`.
        canvas: height and width of the network's input. Given, cells are `canvas // level size` pixels apart in each
            axis whatever the strides say, as in torchvision, where P6 of 800 rows has cells 61 pixels high.

    Raises:
        ValueError: when there are not as many strides or groups of sizes as levels.
    """
    if not len(level_sizes) == len(strides) == len(sizes):
        raise ValueError(f"{len(level_sizes)} levels but strides for {len(strides)} and sizes for {len(sizes)}.")
    levels = []
    for level_size, stride, level_scales in zip(level_sizes, strides, sizes, strict=True):
        apart = (stride, stride) if canvas is None else (canvas[0] // level_size[0], canvas[1] // level_size[1])
        levels.append(grid_anchors(cell_anchors(level_scales, aspect_ratios, stride=stride, rule=rule), apart, level_size))
    return levels


def inside_picture(anchors: Float32[AnyArray, "A 4"], size: Size, *, border: float) -> Bool[Array, "A"]:
    """Anchors that stay in the picture, or leave it by less than `border` pixels; with a negative border, all of them.

    Args:
        anchors: `x1, y1, x2, y2` in pixels.
        size: height and width of the picture, numbers or an array of two.
        border: maskrcnn-benchmark's STRADDLE_THRESH, mmdetection's allowed_border.
    """
    if border < 0:
        return jnp.ones(anchors.shape[0], bool)
    height, width = size
    x1, y1, x2, y2 = jnp.asarray(anchors).T
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


def in_padded_picture(anchors: Float32[AnyArray, "A 4"], size: Size, *, divisor: int = 32) -> Bool[Array, "A"]:
    """Anchors of the cells that a picture would have on its own, as mmdetection's valid flags.

    A batch shares one canvas; the cells beyond a picture's own size, rounded up to `divisor`, see only padding.

    Args:
        anchors: `x1, y1, x2, y2` in pixels, of the rule "exact" or "rounded": their centres are their cells' corners.
        size: height and width of the picture, numbers or an array of two.
        divisor: sides of a canvas are multiples of it.
    """
    height, width = (jnp.ceil(jnp.asarray(side) / divisor) * divisor for side in size)
    x1, y1, x2, y2 = jnp.asarray(anchors).T
    # Cells begin at whole pixels; half a pixel is far more than a centre's rounding.
    return ((x1 + x2) / 2 < width - 0.5) & ((y1 + y2) / 2 < height - 0.5)
