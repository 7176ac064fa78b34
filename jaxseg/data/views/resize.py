"""Sizes and pixels of pictures that keep their proportions, as R-CNN's originals have them.

The originals agree on what they want, a shorter side of 800 pixels unless the longer one exceeds
1333. They differ in how they round, which concerns half of all pictures by a pixel, and in who
interpolates. `Resize.rule` names the original.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

from jaxseg.structures import Resize


def proportional_size(picture_size: tuple[int, int], resize: Resize, shorter_side: int) -> tuple[int, int]:
    """Height and width that the original gives a picture, at least one pixel each.

    Args:
        picture_size: height and width.
        resize: the rule, any but "stretch", and the limit of the longer side. With
            "pillow_truncated" the longer side can exceed the limit by a pixel or two, and by more
            in very long pictures, as in maskrcnn-benchmark, which rounds the shorter side first.
        shorter_side: what the shorter side should be, in pixels.
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
    """The whole picture at another size; float32 for "float", which does not round.

    Args:
        image: RGB.
        size: height and width.
        rule: of `Resize`. Pillow averages all pixels that a pixel of a smaller picture covers, the
            others look at two by two.
    """
    if rule in ("pillow", "pillow_truncated"):
        return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    pixels = image.astype(np.float32) if rule == "float" else image
    return cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def pad_image(image: ndarray, input_size: tuple[int, int]) -> ndarray:
    """The image with zeros right of it and below; itself where it fills the input already."""
    if image.shape[:2] == input_size:
        return image
    padded = np.zeros((*input_size, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
