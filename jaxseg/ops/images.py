"""The normalisation of images, and the resize of feature maps."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt8

Images = UInt8[Array, "B H W 3"] | Float32[Array, "B H W 3"]


def normalize_images(images: Images, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> Float[Array, "B H W 3"]:
    """Subtracts the mean from RGB images in 0..255 and divides them by the standard deviation.

    The arithmetic is in float32, and the result has the type `dtype`.
    """
    return ((images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)


def blank_padding(images: Float[Array, "B H W 3"], picture_sizes: Int32[Array, "B 2"]) -> Float[Array, "B H W 3"]:
    """Sets normalised images to 0 on the right of the picture and below it.

    Args:
        images: normalised images.
        picture_sizes: the height and width of each picture within its image.
    """
    height, width = images.shape[1:3]
    rows = jnp.arange(height) < picture_sizes[:, :1]
    columns = jnp.arange(width) < picture_sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], images, 0)


def resize_bilinear(features: Float[Array, "B h w c"], size: tuple[int, int]) -> Float[Array, "B H W c"]:
    """Resizes bilinearly, with half-pixel centres and without antialiasing.

    PyTorch's `interpolate(align_corners=False)` does the same.
    """
    batch, _, _, channels = features.shape
    return jax.image.resize(features, (batch, *size, channels), method="linear", antialias=False)


def resize_nearest(features: Float[Array, "B h w c"], size: tuple[int, int]) -> Float[Array, "B H W c"]:
    """Resizes to the nearest neighbours, as PyTorch's `interpolate` chooses them."""
    height, width = features.shape[1:3]
    # The usual case of doubling needs no indices.
    if size == (2 * height, 2 * width):
        return jnp.repeat(jnp.repeat(features, 2, 1), 2, 2)
    rows, columns = jnp.arange(size[0]) * height // size[0], jnp.arange(size[1]) * width // size[1]
    return features[:, rows][:, :, columns]
