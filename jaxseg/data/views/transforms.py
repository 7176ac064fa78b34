"""YOLACT's training augmentation, as dbolya/yolact defines it, and the transform of evaluation.

Expand, crop, mirror and resize are one map: a window of the picture's plane fills the network's input. So an
augmentation is two small values, `Photometric` (what happens to colours) and `Window` (what is looked at), drawn first
and applied once. Pixels outside the picture have the mean colour, masks are 0 there.

Every draw takes a `numpy.random.Generator`, and no function keeps state. docs/data.md says where the original is followed
and where it is put right.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from jaxseg.config import AugmentConfig
from jaxseg.data.sources.dataset import Sample
from jaxseg.data.views.image_masks import warp_masks
from jaxseg.data.views.resize import resize_pixels
from jaxseg.data.views.window import Window, resize_taps

# RGB; the original fills with this mean whatever the backbone normalises by.
FILL = np.array((123.68, 116.78, 103.94), np.float32)
# In pixels of the network's input. The original's config means 4 pixels of 550; what its training really asks is this.
MINIMUM_SIDE = 4 / 550
CROP_TRIES = 50
AUGMENTATION_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Photometric:
    """A change of colours; the defaults change nothing.

    Attributes:
        brightness: added to R, G and B (0..255).
        contrast: factor of R, G and B, after brightness. The original multiplies before or after the change of saturation
            and hue; both give the same colours, for those two do not depend on the scale.
        saturation: factor.
        hue: turn in degrees.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """All that chance decides about one training image."""

    photometric: Photometric
    window: Window


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Each of the four changes with probability one half: brightness +-32, contrast and saturation 0.5 to 1.5, hue +-18 degrees."""
    return Photometric(
        brightness=rng.uniform(-32, 32) if _heads(rng) else 0.0,
        contrast=rng.uniform(0.5, 1.5) if _heads(rng) else 1.0,
        saturation=rng.uniform(0.5, 1.5) if _heads(rng) else 1.0,
        hue=rng.uniform(-18, 18) if _heads(rng) else 0.0,
    )


def draw_expansion(rng: np.random.Generator, window: Window) -> Window:
    """With probability one half a window 1 to 4 times as large, the old one anywhere inside."""
    if _heads(rng):
        return window
    ratio = rng.uniform(1, 4)
    return window.expanded(ratio, left=rng.uniform(0, window.width * (ratio - 1)), top=rng.uniform(0, window.height * (ratio - 1)))


def draw_crop(rng: np.random.Generator, window: Window, boxes: Float32[np.ndarray, "n 4"], crowd: Bool[np.ndarray, "n"]) -> Window:
    """A crop that holds the centre of at least one ordinary object, or (one draw in six) the window as it is.

    Sides are 0.3 to 1 of the window's, height over width 0.5 to 2. After 50 tries in vain the draw starts again. The original
    also names minimal overlaps of 0.1 to 0.9, but its test for them never rejects a crop. An image without any
    object takes every crop; one with nothing but crowds is never cropped, as in the original.
    """
    centres = _centres(boxes[~crowd])
    while rng.integers(6) > 0:
        for _ in range(CROP_TRIES):
            width, height = rng.uniform(0.3, 1.0) * window.width, rng.uniform(0.3, 1.0) * window.height
            if not 0.5 <= height / width <= 2:
                continue
            cropped = window.cropped(_offset(rng, window.width - width), _offset(rng, window.height - height), width, height)
            if len(boxes) == 0 or cropped.holds(centres).any():
                return cropped
    return window


def draw_augmentation(
    rng: np.random.Generator,
    image_size: tuple[int, int],
    boxes: Float32[np.ndarray, "n 4"],
    crowd: Bool[np.ndarray, "n"],
    augment: AugmentConfig,
    size: tuple[int, int],
) -> Augmentation:
    """Draws what happens to one training image.

    Args:
        rng: the only source of randomness.
        image_size: height and width of the picture.
        boxes: `x1, y1, x2, y2` in pixels of the picture.
        crowd: which boxes are crowd regions.
        augment: which steps take part.
        size: height and width of the network's input.

    Returns:
        An augmentation that leaves at least one object. Should ten draws leave none, the picture stays whole.
    """
    whole = Window.whole(image_size)
    photometric = draw_photometric(rng) if augment.photometric else Photometric()
    for _ in range(AUGMENTATION_TRIES):
        window = draw_expansion(rng, whole) if augment.expand else whole
        window = draw_crop(rng, window, boxes, crowd) if augment.crop else window
        window = window.mirrored() if augment.mirror and _heads(rng) else window
        if len(boxes) == 0 or kept_objects(boxes, window, size).any():
            return Augmentation(photometric, window)
    return Augmentation(photometric, whole)


def apply_photometric(image: UInt8[np.ndarray, "h w 3"], photometric: Photometric) -> Float32[np.ndarray, "h w 3"]:
    """The picture in changed colours, RGB; values may leave 0..255, as in the original."""
    changed = image.astype(np.float32)
    if photometric.brightness != 0:
        changed += photometric.brightness
    if photometric.contrast != 1:
        changed *= photometric.contrast
    # HSV and back changes nothing but negative colours, and only darkening makes those.
    if photometric.saturation == 1 and photometric.hue == 0 and photometric.brightness >= 0:
        return changed
    hsv: np.ndarray = cv2.cvtColor(changed, cv2.COLOR_RGB2HSV)
    if photometric.saturation != 1:
        hsv[..., 1] *= photometric.saturation
    if photometric.hue != 0:
        hue = hsv[..., 0] + photometric.hue
        hue += np.float32(360) * (hue < 0) if photometric.hue < 0 else np.float32(-360) * (hue > 360)
        hsv[..., 0] = hue
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def warp_image(
    image: UInt8[np.ndarray, "h w 3"], window: Window, size: tuple[int, int], photometric: Photometric = Photometric()
) -> Float32[np.ndarray, "H W 3"]:
    """What the window shows, at network size: `cv2.resize` (bilinear, half-pixel centres, no antialias) of the window's pixels.

    Args:
        image: RGB.
        window: what to look at; beyond the picture's edge it sees the mean colour, which `photometric` does not touch.
        size: height and width of the result.
        photometric: change of the picture's colours, made before the resize.

    Returns:
        RGB, not clipped and not rounded.
    """
    inside = window.clipped(image.shape[:2])
    if inside.is_empty:
        return _filled(size)
    piece = image[inside.y1 : inside.y2, inside.x1 : inside.x2]
    if (inside.x1, inside.y1, inside.x2, inside.y2) == (window.x1, window.y1, window.x2, window.y2):
        result = cv2.resize(apply_photometric(piece, photometric), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    else:
        result = _warp_expanded(piece, inside, window, size, photometric)
    return cv2.flip(result, 1) if window.mirror else result


def _warp_expanded(
    piece: UInt8[np.ndarray, "h w 3"], inside: Window, window: Window, size: tuple[int, int], photometric: Photometric
) -> Float32[np.ndarray, "H W 3"]:
    """As a resize of the whole window, but without making it: it is mostly fill, and up to 16 times the picture."""
    lower, upper, weight = resize_taps(window.height, size[0])
    first, last = inside.y1 - window.y1, inside.y2 - window.y1
    touched = np.flatnonzero((upper >= first) & (lower < last))
    lower, upper, weight = lower[touched] - first, upper[touched] - first, weight[touched]
    lower_weight = np.where((lower >= 0) & (lower < len(piece)), 1 - weight, 0).astype(np.float32)
    upper_weight = np.where((upper >= 0) & (upper < len(piece)), weight, 0).astype(np.float32)
    # Of the picture's rows only those that the result looks at are coloured; differences to the fill are 0 outside.
    rows, where = np.unique(np.clip(np.concatenate([lower, upper]), 0, len(piece) - 1), return_inverse=True)
    difference = apply_photometric(piece[rows], photometric)
    difference -= _filled((1, piece.shape[1]))
    canvas = np.zeros((len(touched), window.width, 3), np.float32)
    shown = canvas[:, inside.x1 - window.x1 : inside.x2 - window.x1]
    np.multiply(difference[where[: len(touched)]], lower_weight[:, None, None], out=shown)
    shown += difference[where[len(touched) :]] * upper_weight[:, None, None]
    result = _filled(size)
    if len(touched):
        result[touched[0] : touched[-1] + 1] += cv2.resize(canvas, (size[1], len(touched)), interpolation=cv2.INTER_LINEAR)
    return result


def _filled(size: tuple[int, int]) -> Float32[np.ndarray, "H W 3"]:
    """An image of the mean colour, written a row at a time: 20 times as fast as pixel by pixel."""
    rows = np.empty((size[0], size[1] * 3), np.float32)
    rows[:] = np.tile(FILL, size[1])
    return rows.reshape(*size, 3)


def to_uint8(image: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Colours clipped to 0..255 and rounded, halves to the even number."""
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def warp_boxes(boxes: Float32[np.ndarray, "n 4"], window: Window, size: tuple[int, int]) -> Float32[np.ndarray, "n 4"]:
    """Boxes clipped to the window, in pixels of the network's input.

    Args:
        boxes: `x1, y1, x2, y2` in pixels of the picture.
        window: what the network sees.
        size: height and width of the network's input.
    """
    x = np.clip(boxes[:, 0::2].astype(np.float64), window.x1, window.x2) - window.x1
    y = np.clip(boxes[:, 1::2].astype(np.float64), window.y1, window.y2) - window.y1
    if window.mirror:
        x = window.width - x[:, ::-1]
    x *= size[1] / window.width
    y *= size[0] / window.height
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


def kept_objects(boxes: Float32[np.ndarray, "n 4"], window: Window, size: tuple[int, int]) -> Bool[np.ndarray, "n"]:
    """Objects that stay: the box's centre lies inside the window, and the clipped box has an area."""
    warped = warp_boxes(boxes, window, size)
    return window.holds(_centres(boxes)) & (warped[:, 2:] - warped[:, :2] > MINIMUM_SIDE).all(axis=1)


def training_transform(sample: Sample, rng: np.random.Generator, augment: AugmentConfig, size: tuple[int, int]) -> Sample:
    """One augmented sample at network size: image uint8, boxes in its pixels, masks at its resolution.

    The pipeline makes masks at the losses' resolutions without this detour (`jaxseg.data.stream.targets.to_targets`); both
    give the same bits. This is the form to look at, and the reference of that one.
    """
    drawn = draw_augmentation(rng, sample.image.shape[:2], sample.boxes, sample.crowd, augment, size)
    image = to_uint8(warp_image(sample.image, drawn.window, size, drawn.photometric))
    return _at_network_size(sample, image, drawn.window, size)


def evaluation_transform(sample: Sample, size: tuple[int, int]) -> Sample:
    """The whole sample stretched to network size, as the original's evaluation does it.

    The image is float32, not rounded, boxes are in its pixels, masks at its resolution.
    """
    return _at_network_size(sample, resize_pixels(sample.image, size, "stretch"), Window.whole(sample.image.shape[:2]), size)


def _at_network_size(sample: Sample, image: np.ndarray, window: Window, size: tuple[int, int]) -> Sample:
    kept = np.flatnonzero(kept_objects(sample.boxes, window, size))
    return Sample(
        image=image,
        boxes=warp_boxes(sample.boxes[kept], window, size),
        classes=sample.classes[kept],
        crowd=sample.crowd[kept],
        masks=None if sample.masks is None else warp_masks(sample.masks, kept, window, size, size).astype(np.uint8),
        index=sample.index,
    )


def _heads(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


def _offset(rng: np.random.Generator, room: float) -> float:
    """Anywhere from 1 to `room` (or from `room` to 1). That it is 1 and not 0 is the original's, which names only one bound."""
    return room + (1 - room) * rng.random()


def _centres(boxes: Float32[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    return (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
