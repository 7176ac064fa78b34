"""The anchors of the cells of a pyramid, and the selection of those that a picture uses.

They are made in NumPy from static sizes, so they are constants of the compiled program.
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.boxes import Size
from jaxseg.structures import AnyArray

AnchorRule = Literal["exact", "legacy", "rounded"]


def yolact_anchors(
    input_size: int,
    level_sizes: Sequence[tuple[int, int]],
    scales: Sequence[Sequence[float]],
    aspect_ratios: Sequence[float],
    *,
    square: bool,
) -> Float32[np.ndarray, "A 4"]:
    """Makes YOLACT's anchors, `cx, cy, w, h` as fractions of the input.

    They are ordered by level, y, x, scale and aspect ratio.

    Args:
        input_size: the side of the square input in pixels.
        level_sizes: the height and width of each pyramid level. Its cells divide the input evenly,
            independently of the stride.
        scales: the scales of each level in pixels.
        aspect_ratios: width over height.
        square: whether heights are overwritten by widths, as in the code that trained the published
            weights of YOLACT. Its anchors are squares of scale * sqrt(ratio). This was corrected
            for Pascal and YOLACT++.

    Raises:
        ValueError: there are not as many levels as groups of scales.
    """
    if len(level_sizes) != len(scales):
        raise ValueError(f"{len(level_sizes)} levels but scales for {len(scales)}.")
    levels = []
    for (rows, columns), level_scales in zip(level_sizes, scales, strict=True):
        widths = np.array([scale * np.sqrt(ratio) / input_size for scale in level_scales for ratio in aspect_ratios])
        heights = widths if square else np.array([scale / np.sqrt(ratio) / input_size for scale in level_scales for ratio in aspect_ratios])
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
    """Makes R-CNN's anchors of the first cell of a level, `x1, y1, x2, y2` in pixels.

    They are ordered by aspect ratio and size.

    Args:
        sizes: the square roots of the areas, in pixels. RetinaNet's octaves are the sizes
            s, s * 2**(1/3) and s * 2**(2/3).
        aspect_ratios: height over width.
        stride: the stride of the level in pixels; only the rule "legacy" needs it.
        rule: "exact" centres the anchors on (0, 0), as mmdetection and detectron2 do. "rounded"
            rounds those corners, as torchvision does. "legacy" is the rule of the first Faster
            R-CNN and of maskrcnn-benchmark: it centres the anchors on the middle of a cell, and
            scales a window of the cell's size with rounded sides; anchors end in their last pixel.
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
    """Shifts the anchors of one cell to every cell of a level, in the order y, x, anchor.

    Args:
        cells: the anchors of the first cell, see `cell_anchors`.
        stride: the distance of the cells in pixels, or the vertical and the horizontal one.
        level_size: the height and width of the level in cells.
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
    """Makes R-CNN's anchors of each level, `x1, y1, x2, y2` in pixels.

    They are ordered by y, x, aspect ratio and size.

    Args:
        level_sizes: the height and width of each level in cells.
        strides: the stride of each level in pixels.
        sizes: the sizes of each level, see `cell_anchors`.
        aspect_ratios: height over width.
        rule: see `cell_anchors`.
        canvas: the height and width of the network's input. If it is given, the distance of cells
            is `canvas // level_size` pixels along each axis and `strides` is ignored, as in
            torchvision, where the cells of P6 are 61 pixels high for an input of 800 rows.

    Raises:
        ValueError: there are not as many strides or groups of sizes as levels.
    """
    if not len(level_sizes) == len(strides) == len(sizes):
        raise ValueError(f"{len(level_sizes)} levels but strides for {len(strides)} and sizes for {len(sizes)}.")
    levels = []
    for level_size, stride, level_scales in zip(level_sizes, strides, sizes, strict=True):
        apart = (stride, stride) if canvas is None else (canvas[0] // level_size[0], canvas[1] // level_size[1])
        levels.append(grid_anchors(cell_anchors(level_scales, aspect_ratios, stride=stride, rule=rule), apart, level_size))
    return levels


def inside_picture(anchors: Float32[AnyArray, "A 4"], picture_size: Size, *, border: float) -> Bool[Array, "A"]:
    """Returns which anchors extend beyond the picture by at most `border` pixels.

    Args:
        anchors: `x1, y1, x2, y2` in pixels.
        picture_size: the height and width of the picture.
        border: maskrcnn-benchmark's STRADDLE_THRESH and mmdetection's allowed_border. A negative
            border keeps all anchors.
    """
    if border < 0:
        return jnp.ones(anchors.shape[0], bool)
    height, width = picture_size
    x1, y1, x2, y2 = jnp.asarray(anchors).T
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


def in_padded_picture(anchors: Float32[AnyArray, "A 4"], picture_size: Size, *, divisor: int) -> Bool[Array, "A"]:
    """Returns which anchors belong to cells of the picture, like mmdetection's valid flags.

    All pictures of a batch have inputs of one size. The cells beyond a picture's size, rounded up
    to a multiple of `divisor`, contain only padding.

    Args:
        anchors: `x1, y1, x2, y2` in pixels, of the rule "exact" or "rounded", where the centre of
            an anchor is a corner of its cell.
        picture_size: the height and width of the picture.
        divisor: the number of which the sides of an input are multiples.
    """
    height, width = (jnp.ceil(jnp.asarray(side) / divisor) * divisor for side in picture_size)
    x1, y1, x2, y2 = jnp.asarray(anchors).T
    # Cells begin at whole pixels, and half a pixel is much more than a centre's rounding error.
    return ((x1 + x2) / 2 < width - 0.5) & ((y1 + y2) / 2 < height - 0.5)
