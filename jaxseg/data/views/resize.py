"""The resize that keeps a picture's proportions, as each of R-CNN's originals does it.

The originals share the rule that the shorter side has 800 pixels, unless the longer one would
exceed 1333. They differ in how they round, which changes half of all pictures by a pixel, and in
the library that interpolates. `Resize.rule` selects the original.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

from jaxseg.structures import Resize


def proportional_size(picture_size: tuple[int, int], resize: Resize, shorter_side: int) -> tuple[int, int]:
    """Returns the height and width that the original gives a picture, at least one pixel each.

    Args:
        picture_size: the height and width of the picture.
        resize: the rule, which must not be "stretch", and the limit of the longer side. With
            "pillow_truncated" the longer side can exceed the limit by a pixel or two, and by more
            in very long pictures, as in maskrcnn-benchmark, which rounds the shorter side first.
        shorter_side: the desired length of the shorter side in pixels.
    """
    short, long = min(picture_size), max(picture_size)
    if resize.rule == "pillow_truncated":
        side = round(resize.longer_side * short / long) if long / short * shorter_side > resize.longer_side else shorter_side
        sides = [side if length == short else int(side * length / short) for length in picture_size]
    elif resize.rule == "pillow":
        scale = shorter_side / short
        exact = [float(shorter_side) if length == short else scale * length for length in picture_size]
        excess = resize.longer_side / max(exact)
        sides = [int(length * excess + 0.5 if excess < 1 else length + 0.5) for length in exact]
    else:
        scale = min(resize.longer_side / long, shorter_side / short)
        sides = [int(length * scale + (0.5 if resize.rule == "opencv" else 0.0)) for length in picture_size]
    return max(sides[0], 1), max(sides[1], 1)


def resize_pixels(
    image: UInt8[ndarray, "h w 3"], size: tuple[int, int], rule: str
) -> UInt8[ndarray, "{size[0]} {size[1]} 3"] | Float32[ndarray, "{size[0]} {size[1]} 3"]:
    """Resizes the whole picture; the result is float32 for "float", which does not round.

    Args:
        image: the picture, RGB.
        size: the height and width of the result.
        rule: a rule of `Resize`. When a picture becomes smaller, Pillow averages all pixels that a
            pixel of the result covers, while the others read only two by two pixels.
    """
    if rule in ("pillow", "pillow_truncated"):
        return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    pixels = image.astype(np.float32) if rule == "float" else image
    return cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def pad_image(image: ndarray, input_size: tuple[int, int]) -> ndarray:
    """Pads an image with zeros on the right and below, unless it already fills the input."""
    if image.shape[:2] == input_size:
        return image
    padded = np.zeros((*input_size, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
