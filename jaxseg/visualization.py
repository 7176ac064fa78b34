"""Pictures with masks, boxes, names and scores, in the manner users of YOLACT know; and grids of pictures.

As the original draws: masks with an alpha of 0.45, the best detection on top, the colour from the rank (or the class),
a thin box, and `name: 0.00` above it. Unlike it: line width and text grow with the picture, small pictures
are enlarged so that the text can be read, and a label that would leave the picture is moved inside.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from jaxseg.structures import MaskCrop

MASK_ALPHA = 0.45
# Material Design's hues at strength 500. Stepping by 5 through 19 of them keeps neighbours in rank apart.
# fmt: off
_HUES = (
    0xF44336, 0xE91E63, 0x9C27B0, 0x673AB7, 0x3F51B5, 0x2196F3, 0x03A9F4, 0x00BCD4, 0x009688, 0x4CAF50,
    0x8BC34A, 0xCDDC39, 0xFFEB3B, 0xFFC107, 0xFF9800, 0xFF5722, 0x795548, 0x9E9E9E, 0x607D8B,
)
# fmt: on
PALETTE = tuple((hue >> 16, hue >> 8 & 255, hue & 255) for hue in _HUES)
_PALETTE_STEP = 5
_FONT = cv2.FONT_HERSHEY_DUPLEX
_BACKGROUND = 255


def color_of(index: int) -> tuple[int, int, int]:
    """The RGB colour of the detection of this rank, or of the class of this number."""
    return PALETTE[index * _PALETTE_STEP % len(PALETTE)]


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray | Sequence[MaskCrop] | None,
    classes: np.ndarray,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    *,
    color_by: Literal["rank", "class"] = "rank",
    minimum_side: int = 480,
) -> np.ndarray:
    """Draws objects on a copy of the picture.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        boxes: `[n, 4]`, `x1, y1, x2, y2` in pixels of the image, best first (the first is drawn last, on top).
        masks: bool `[n, H, W]`, or n parts of such masks, or None for boxes alone.
        classes: `[n]`, 0 .. C-1.
        scores: `[n]`, or None for ground truth.
        class_names: C names.
        color_by: the rank tells neighbours apart, the class keeps its colour from picture to picture.
        minimum_side: a picture whose longer side is under this is enlarged by a whole factor until it is not.

    Returns:
        uint8 `[k H, k W, 3]`, with `k = 1` unless the picture was enlarged.

    Raises:
        ValueError: for an image that is not uint8 `[H, W, 3]`, or counts that differ.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"The picture to draw on is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3].")
    counts = {len(rows) for rows in (boxes, masks, classes, scores) if rows is not None}
    if len(counts) != 1:
        raise ValueError(f"Boxes, masks, classes and scores to draw differ in number: {sorted(counts)}.")
    factor = -(-minimum_side // max(image.shape[:2]))
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
    colors = [color_of(int(classes[i]) if color_by == "class" else i) for i in range(len(boxes))]
    if masks is not None:
        for mask, color in reversed(list(zip(masks, colors, strict=True))):
            _blend(canvas, mask if isinstance(mask, MaskCrop) else _cropped(mask), color, factor)
    for i in reversed(range(len(boxes))):
        name = class_names[int(classes[i])]
        label = name if scores is None else f"{name}: {scores[i]:.2f}"
        _draw_box(canvas, np.asarray(boxes[i], np.float64) * factor, label, colors[i])
    return canvas


def draw_grid(images: Sequence[np.ndarray], *, columns: int = 0, gap: int = 4) -> np.ndarray:
    """One picture out of several uint8 `[H, W, 3]` ones, in reading order, each centred in a cell of the largest size.

    Args:
        images: at least one picture.
        columns: how many a row; 0 makes the grid as square as it can be.
        gap: white pixels between cells.

    Raises:
        ValueError: for no pictures.
    """
    if not images:
        raise ValueError("There is no picture to put into the grid; give at least one.")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    height, width = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    grid = np.full((rows * height - gap, columns * width - gap, 3), _BACKGROUND, np.uint8)
    for i, image in enumerate(images):
        top = i // columns * height + (height - gap - image.shape[0]) // 2
        left = i % columns * width + (width - gap - image.shape[1]) // 2
        grid[top : top + image.shape[0], left : left + image.shape[1]] = image
    return grid


def _cropped(mask: np.ndarray) -> MaskCrop:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return MaskCrop(y, x, mask[y : y + height, x : x + width])


def _blend(canvas: np.ndarray, mask: MaskCrop, color: tuple[int, int, int], factor: int) -> None:
    """Mixes the colour into the pixels of the mask, in place; looks only at the part of the canvas the mask covers."""
    inside = mask.bits.repeat(factor, axis=0).repeat(factor, axis=1)
    y, x = mask.top * factor, mask.left * factor
    part = canvas[y : y + inside.shape[0], x : x + inside.shape[1]]
    part[inside] = np.rint(part[inside] * (1 - MASK_ALPHA) + np.array(color) * MASK_ALPHA).astype(np.uint8)


def _draw_box(canvas: np.ndarray, box: np.ndarray, label: str, color: tuple[int, int, int]) -> None:
    height, width = canvas.shape[:2]
    unit = max(max(height, width) / 800, 0.8)
    thickness = max(round(2 * unit), 1)
    # A box far outside would overflow OpenCV's integers.
    x1, y1, x2, y2 = (int(v) for v in np.rint(np.clip(box, -thickness, [width + thickness, height + thickness] * 2)))
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness)

    scale, stroke = 0.6 * unit, max(round(unit), 1)
    (text_width, text_height), baseline = cv2.getTextSize(label, _FONT, scale, stroke)
    plate_width, plate_height = text_width + 2, text_height + baseline
    left = int(np.clip(x1, 0, max(width - plate_width, 0)))
    top = int(np.clip(y1 - plate_height, 0, max(height - plate_height, 0)))
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), color, cv2.FILLED)
    bright = np.dot(color, (0.299, 0.587, 0.114)) > 160
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(canvas, label, (left + 1, top + text_height + baseline // 2), _FONT, scale, ink, stroke, cv2.LINE_AA)
