"""Drawing masks, boxes, names and scores on pictures, in the style of YOLACT's original.

As there, masks have an alpha of 0.45, the best detection is on top, the rank determines the colour,
and `name: 0.00` is above a thin box. In addition, line width and text grow with the picture, small
pictures are enlarged to make the text readable, and labels are moved into the picture.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from jaxseg.structures import MaskCrop

MASK_ALPHA = 0.45
# The hues of Material Design at strength 500. Steps of 5 through these 19 give objects of similar
# rank different colours.
# fmt: off
_HUES = (
    0xF44336, 0xE91E63, 0x9C27B0, 0x673AB7, 0x3F51B5, 0x2196F3, 0x03A9F4, 0x00BCD4, 0x009688, 0x4CAF50,
    0x8BC34A, 0xCDDC39, 0xFFEB3B, 0xFFC107, 0xFF9800, 0xFF5722, 0x795548, 0x9E9E9E, 0x607D8B,
)
# fmt: on
PALETTE = tuple((hue >> 16, hue >> 8 & 255, hue & 255) for hue in _HUES)
_PALETTE_STEP = 5
_FONT = cv2.FONT_HERSHEY_DUPLEX


def color_of(rank: int) -> tuple[int, int, int]:
    """Returns the RGB colour of the object with this rank."""
    return PALETTE[rank * _PALETTE_STEP % len(PALETTE)]


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    class_names: Sequence[str],
    *,
    masks: np.ndarray | Sequence[MaskCrop] | None = None,
    scores: np.ndarray | None = None,
    minimum_side: int = 480,
) -> np.ndarray:
    """Draws objects on a copy of a picture.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        boxes: `[n, 4]`, `x1, y1, x2, y2` in pixels of the image, the best first. The first is drawn
            last, on top.
        classes: `[n]`, 0 .. C-1.
        class_names: the C names.
        masks: bool `[n, H, W]`, or n crops of such masks; by default, only boxes are drawn.
        scores: `[n]`, or None for ground truth.
        minimum_side: the least longer side in pixels. A smaller picture is enlarged by the least
            whole factor that reaches it.

    Returns:
        The drawing, uint8 `[k H, k W, 3]`, where k is 1 unless the picture was enlarged.

    Raises:
        ValueError: the image is not uint8 `[H, W, 3]`, or the numbers of boxes, classes, masks and
            scores differ.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"The picture to draw on is {image.dtype} {list(image.shape)}; it must be uint8 [height, width, 3].")
    counts = {len(rows) for rows in (boxes, masks, classes, scores) if rows is not None}
    if len(counts) != 1:
        raise ValueError(f"Boxes, masks, classes and scores to draw differ in number: {sorted(counts)}.")
    factor = -(-minimum_side // max(image.shape[:2]))
    canvas = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
    colors = [color_of(rank) for rank in range(len(boxes))]
    if masks is not None:
        for mask, color in reversed(list(zip(masks, colors, strict=True))):
            _blend(canvas, mask if isinstance(mask, MaskCrop) else _cropped(mask), color, factor)
    for i in reversed(range(len(boxes))):
        name = class_names[int(classes[i])]
        label = name if scores is None else f"{name}: {scores[i]:.2f}"
        _draw_box(canvas, np.asarray(boxes[i], np.float64) * factor, label, colors[i])
    return canvas


def _cropped(mask: np.ndarray) -> MaskCrop:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return MaskCrop(y, x, mask[y : y + height, x : x + width])


def _blend(canvas: np.ndarray, mask: MaskCrop, color: tuple[int, int, int], factor: int) -> None:
    """Mixes a colour into the pixels of a mask in place; only the mask's crop is accessed."""
    inside = mask.bits.repeat(factor, axis=0).repeat(factor, axis=1)
    y, x = mask.top * factor, mask.left * factor
    part = canvas[y : y + inside.shape[0], x : x + inside.shape[1]]
    part[inside] = np.rint(part[inside] * (1 - MASK_ALPHA) + np.array(color) * MASK_ALPHA).astype(np.uint8)


def _draw_box(canvas: np.ndarray, box: np.ndarray, label: str, color: tuple[int, int, int]) -> None:
    height, width = canvas.shape[:2]
    unit = max(max(height, width) / 800, 0.8)
    thickness = max(round(2 * unit), 1)
    # Boxes are clipped because those far outside would overflow OpenCV's integers.
    x1, y1, x2, y2 = (int(v) for v in np.rint(np.clip(box, -thickness, [width + thickness, height + thickness] * 2)))
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color=color, thickness=thickness)

    scale, stroke = 0.6 * unit, max(round(unit), 1)
    (text_width, text_height), baseline = cv2.getTextSize(label, _FONT, scale, stroke)
    plate_width, plate_height = text_width + 2, text_height + baseline
    left = int(np.clip(x1, 0, max(width - plate_width, 0)))
    top = int(np.clip(y1 - plate_height, 0, max(height - plate_height, 0)))
    cv2.rectangle(canvas, (left, top), (left + plate_width, top + plate_height), color=color, thickness=cv2.FILLED)
    bright = np.dot(color, (0.299, 0.587, 0.114)) > 160
    ink = (0, 0, 0) if bright else (255, 255, 255)
    origin = (left + 1, top + text_height + baseline // 2)
    cv2.putText(canvas, label, origin, fontFace=_FONT, fontScale=scale, color=ink, thickness=stroke, lineType=cv2.LINE_AA)
