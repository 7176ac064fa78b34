"""The change of a training picture's colours, as dbolya/yolact defines it.

docs/data.md lists the differences from the original.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, UInt8


@dataclasses.dataclass(frozen=True)
class Photometric:
    """A change of colours; the defaults change nothing.

    Attributes:
        brightness: the number that is added to R, G and B (0..255).
        contrast: the factor by which R, G and B are multiplied after the change of brightness. The
            original multiplies before or after the change of saturation and hue. Both give the same
            colours, because saturation and hue do not depend on the scale.
        saturation: the factor by which the saturation is multiplied.
        hue: the rotation of the hue in degrees.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def draw_photometric(rng: np.random.Generator) -> Photometric:
    """Draws each of the four changes with a probability of one half.

    Brightness changes by at most 32, contrast and saturation by a factor of 0.5 to 1.5, and hue by
    at most 18 degrees.
    """
    return Photometric(
        brightness=rng.uniform(-32, 32) if _heads(rng) else 0.0,
        contrast=rng.uniform(0.5, 1.5) if _heads(rng) else 1.0,
        saturation=rng.uniform(0.5, 1.5) if _heads(rng) else 1.0,
        hue=rng.uniform(-18, 18) if _heads(rng) else 0.0,
    )


def apply_photometric(image: UInt8[np.ndarray, "h w 3"], photometric: Photometric) -> Float32[np.ndarray, "h w 3"]:
    """Changes the colours of an RGB picture; values may lie outside 0..255, as in the original."""
    changed = image.astype(np.float32)
    if photometric.brightness != 0:
        changed += photometric.brightness
    if photometric.contrast != 1:
        changed *= photometric.contrast
    # The conversion to HSV and back changes only negative values, which only darkening produces.
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


def to_uint8(image: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Clips colours to 0..255 and rounds them, with halves to the nearest even number."""
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _heads(rng: np.random.Generator) -> bool:
    return rng.random() < 0.5
