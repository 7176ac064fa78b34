"""The interface that every detector of the house has; training, evaluation and prediction know no more than this."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt8

from jaxseg.config import BackboneConfig
from jaxseg.models.layers import NormMode
from jaxseg.structures import Batch, Detections, InputSpec

Images = UInt8[Array, "B H W 3"] | Float32[Array, "B H W 3"]


class Detector(nn.Module):
    """A pure function of its variables and a batch of fixed-size arrays."""

    @property
    def input_spec(self) -> InputSpec:
        """The static sizes of the batches this detector wants."""
        raise NotImplementedError(f"{type(self).__name__}.input_spec")

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """Every term already weighted and normalised; their sum is what training minimises. Uses the rng `sampling`."""
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """Fixed-size detections of each image, best score first."""
        raise NotImplementedError(f"{type(self).__name__}.detect")

    def __call__(self, images: Images) -> Any:
        """Raw outputs, what parity tests and export look at."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")

    def initialize(self, images: Images) -> Any:
        """Runs every module, so that all parameters come into being."""
        return self(images)

    def learns(self, path: tuple[str, ...]) -> bool:
        """Whether training moves the parameter at `path`, for instance `("backbone", "bn1", "scale")`."""
        del path
        return True


def is_norm(path: tuple[str, ...]) -> bool:
    """Whether a parameter is the scale or bias of a batch norm (`bn*`) or group norm (`gn*`)."""
    return any(module.startswith(("bn", "gn")) for module in path[:-1])


def in_frozen_stages(path: tuple[str, ...], frozen_stages: int) -> bool:
    """Whether a parameter belongs to the backbone's first parts, of which 1 is the stem, 2 the stem and C2, and so on."""
    if path[0] != "backbone":
        return False
    stage = re.match(r"stage(\d+)_", path[1])
    return (int(stage[1]) if stage else 0) < frozen_stages


def is_frozen(path: tuple[str, ...], backbone: BackboneConfig, batch_norm: NormMode) -> bool:
    """Whether a parameter is one of a frozen batch norm, or belongs to the backbone's frozen stages."""
    frozen_norm = batch_norm == "frozen" and backbone.norm == "batch" and is_norm(path)
    return frozen_norm or in_frozen_stages(path, backbone.frozen_stages)


def normalize_images(images: Images, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> Float[Array, "B H W 3"]:
    """RGB 0..255 as the backbone learned it; the arithmetic is float32, the result `dtype`."""
    return ((images.astype(jnp.float32) - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)


def blank_padding(images: Float[Array, "B H W 3"], image_sizes: Int32[Array, "B 2"]) -> Float[Array, "B H W 3"]:
    """Normalised images with 0 right of the picture and below it."""
    height, width = images.shape[1:3]
    rows = jnp.arange(height) < image_sizes[:, :1]
    columns = jnp.arange(width) < image_sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], images, 0)


def resize_bilinear(features: Float[Array, "B h w c"], size: tuple[int, int]) -> Float[Array, "B H W c"]:
    """Bilinear, half-pixel centres, no antialias: what the originals' `interpolate(align_corners=False)` computes."""
    batch, _, _, channels = features.shape
    return jax.image.resize(features, (batch, *size, channels), method="linear", antialias=False)
