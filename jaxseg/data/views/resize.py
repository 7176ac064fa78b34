"""How a picture gets into the network's input: stretched, or in its proportions with room left on the right and below.

The four originals agree on what they want, a shorter side of 800 pixels unless the longer one exceeds 1333, and differ in
rounding (half of all pictures, by a pixel) and in who interpolates. `Resize.rule` names the original.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

from jaxseg.structures import InputSpec, Resize


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A picture in the network's input.

    Attributes:
        image: RGB, 0..255, 0 beyond the picture.
        size: height and width of the picture, which starts at the upper left corner.
    """

    image: Float32[ndarray, "H W 3"]
    size: tuple[int, int]


def network_size(picture_size: tuple[int, int], resize: Resize, shorter_side: int) -> tuple[int, int]:
    """Height and width of a picture in the network's pixels, of at least one pixel, rounded as the original does it.

    Args:
        picture_size: height and width.
        resize: the rule, any but "stretch", and the limit of the longer side. "pillow_truncated" can exceed it by a pixel or two,
            and by more on very long pictures, as maskrcnn-benchmark does: it rounds the shorter side first.
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
    elif resize.rule in ("opencv", "float"):
        scale = min(resize.longer_side / long, shorter_side / short)
        sides = [int(length * scale + (0.5 if resize.rule == "opencv" else 0.0)) for length in picture_size]
    else:
        raise ValueError(f"a picture that is to {resize.rule} takes the size of the network's input")
    return max(sides[0], 1), max(sides[1], 1)


def batch_shape(picture_size: tuple[int, int], spec: InputSpec) -> tuple[int, int]:
    """Height and width of the input that a picture belongs in, whichever of `spec.resize.shorter_sides` it will have.

    It is the smallest that holds the picture at the largest of them, and the last of those (so that squares go with the
    portraits, as in the originals); where none does, the one that lets it be largest.
    """
    if spec.resize.rule == "stretch":
        return spec.image_sizes[0]
    size = network_size(picture_size, spec.resize, max(spec.resize.shorter_sides))
    holding = [shape for shape in reversed(spec.image_sizes) if _holds(shape, size)]
    if holding:
        return min(holding, key=lambda shape: shape[0] * shape[1])
    return max(spec.image_sizes, key=lambda shape: _largest_scale(picture_size, shape))


def fitted_size(picture_size: tuple[int, int], spec: InputSpec, shorter_side: int | None = None) -> tuple[int, int]:
    """Height and width that a picture has within the input of `batch_shape`; see `fit_picture` for the arguments."""
    shape = batch_shape(picture_size, spec)
    if spec.resize.rule == "stretch":
        return shape
    size = network_size(picture_size, spec.resize, shorter_side or max(spec.resize.shorter_sides))
    if _holds(shape, size):
        return size
    scale = _largest_scale(picture_size, shape)
    height, width = (min(max(round(length * scale), 1), side) for length, side in zip(picture_size, shape, strict=True))
    return height, width


def _holds(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    return size[0] <= shape[0] and size[1] <= shape[1]


def _largest_scale(picture_size: tuple[int, int], shape: tuple[int, int]) -> float:
    return min(shape[0] / picture_size[0], shape[1] / picture_size[1])


def fit_picture(image: UInt8[ndarray, "h w 3"], spec: InputSpec, *, shorter_side: int | None = None) -> Fitted:
    """A picture in the input that holds it, as evaluation sees it.

    Args:
        image: RGB.
        spec: what the detector wants. A picture that none of its shapes holds is made smaller until one does.
        shorter_side: pixels, one of `spec.resize.shorter_sides`; None: the largest. It means nothing to "stretch".
    """
    picture_size = image.shape[:2]
    size = fitted_size(picture_size, spec, shorter_side)
    resized = resize_pixels(image, size, spec.resize.rule)
    return Fitted(pad_picture(resized.astype(np.float32, copy=False), batch_shape(picture_size, spec)), size)


def resize_pixels(
    image: UInt8[ndarray, "h w 3"], size: tuple[int, int], rule: str
) -> UInt8[ndarray, "{size[0]} {size[1]} 3"] | Float32[ndarray, "{size[0]} {size[1]} 3"]:
    """The whole picture at another size; float32 for "stretch" and "float", whose pixels are not rounded, uint8 for the others.

    Args:
        image: RGB.
        size: height and width.
        rule: of `Resize`. Pillow averages all pixels that a smaller picture's pixel covers, the others look at two by two.
    """
    if rule in ("pillow", "pillow_truncated"):
        return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    pixels = image if rule == "opencv" else image.astype(np.float32)
    return cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def pad_picture(image: ndarray, shape: tuple[int, int]) -> ndarray:
    """The picture with zeros on the right and below it, in its own dtype; itself where it has this height and width."""
    if image.shape[:2] == shape:
        return image
    padded = np.zeros((*shape, 3), image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded
