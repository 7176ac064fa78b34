"""The interface of every detector, and which detector a configuration describes.

Training, evaluation and prediction know of a detector what stands here, and nothing more.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt8

from jaxseg.config import Config, ModelConfig
from jaxseg.structures import Batch, Detections, InputSpec

Images = UInt8[Array, "B H W 3"] | Float32[Array, "B H W 3"]


class Detector(nn.Module):
    """A pure function of its variables and a batch of fixed-size arrays.

    Attributes:
        config: the model's part of the configuration.
        dtype: of the convolutions.
    """

    config: Any
    dtype: Any = jnp.float32

    @classmethod
    def from_config(cls, config: Config, dtype: Any) -> "Detector":
        """The detector of a whole configuration, for one whose modules depend on more than `config.model`."""
        return cls(config.model, dtype)

    @property
    def input_spec(self) -> InputSpec:
        """The static sizes of the batches that this detector takes."""
        raise NotImplementedError(f"{type(self).__name__}.input_spec")

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """The terms of the loss, weighted and normalised; training minimises their sum. Random choices use the rng `sampling`."""
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """Detections of each image, of a fixed size, in descending order of their scores."""
        raise NotImplementedError(f"{type(self).__name__}.detect")

    def __call__(self, images: Images) -> Any:
        """Raw outputs, which the comparisons with the originals look at."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")

    def initialize(self, images: Images) -> Any:
        """Runs every module once, so that all parameters are created."""
        return self(images)

    def learns(self, path: tuple[str, ...]) -> bool:
        """Whether training moves the parameter at `path`, for instance `("backbone", "bn1", "scale")`."""
        del path
        return True


_DETECTORS: dict[type[ModelConfig], type[Detector]] = {}
D = TypeVar("D", bound=type[Detector])


def detector_of(config: type[ModelConfig]) -> Callable[[D], D]:
    """A decorator that says which class of configurations a detector is built from."""

    def register(detector: D) -> D:
        _DETECTORS[config] = detector
        return detector

    return register


def detector_class(config: type[ModelConfig]) -> type[Detector]:
    """The detector that is built from a class of configurations.

    Raises:
        TypeError: no detector is registered for it; its module may not have been imported.
    """
    if config not in _DETECTORS:
        raise TypeError(f"No detector is built from {config.__name__}; decorate one with @jaxseg.models.detector_of({config.__name__}).")
    return _DETECTORS[config]


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
