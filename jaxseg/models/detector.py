"""The interface of every detector, and the detector that each configuration class describes.

Training, evaluation and prediction use a detector only through this interface.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from jaxseg.config import Config, ModelConfig
from jaxseg.ops.images import Images
from jaxseg.structures import Batch, Detections, InputSpec


class Detector(nn.Module):
    """A pure function of its variables and a batch of fixed-size arrays.

    Attributes:
        config: the model's part of the configuration.
        dtype: the type in which the convolutions compute.
    """

    config: Any
    dtype: Any = jnp.float32

    @classmethod
    def from_config(cls, config: Config, dtype: Any) -> "Detector":
        """Builds the detector from a whole configuration.

        A detector overrides this if its modules depend on more than `config.model`.
        """
        return cls(config.model, dtype)

    @property
    def input_spec(self) -> InputSpec:
        """The static sizes of the batches that this detector takes."""
        raise NotImplementedError(f"{type(self).__name__}.input_spec")

    def losses(self, batch: Batch, *, train: bool) -> dict[str, Float32[Array, ""]]:
        """Returns the terms of the loss, weighted and normalised; training minimises their sum.

        Random choices use the random stream `sampling` of Flax.

        Args:
            batch: images and ground truth, padded to fixed sizes.
            train: whether batch norm uses and updates the batch's statistics.
        """
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def detect(self, images: Images, image_sizes: Int32[Array, "B 2"]) -> Detections:
        """Returns a fixed number of detections for each image, in descending order of the scores.

        Args:
            images: RGB images in 0..255, of the network's input size.
            image_sizes: the height and width of each picture within its image.
        """
        raise NotImplementedError(f"{type(self).__name__}.detect")

    def __call__(self, images: Images) -> Any:
        """Returns the raw outputs, which the tests compare with those of the originals."""
        raise NotImplementedError(f"{type(self).__name__}.__call__")

    def initialize(self, images: Images) -> Any:
        """Runs every module once, so that all parameters are created."""
        return self(images)

    def learns(self, path: tuple[str, ...]) -> bool:
        """Whether training changes a parameter.

        Args:
            path: the parameter's path, for example `("backbone", "bn1", "scale")`.
        """
        del path
        return True


_DETECTORS: dict[type[ModelConfig], type[Detector]] = {}
D = TypeVar("D", bound=type[Detector])


def detector_of(config: type[ModelConfig]) -> Callable[[D], D]:
    """Returns a decorator that registers a detector for a class of configurations."""

    def register(detector: D) -> D:
        _DETECTORS[config] = detector
        return detector

    return register


def detector_class(config: type[ModelConfig]) -> type[Detector]:
    """Returns the detector that is registered for a class of configurations.

    Raises:
        TypeError: none is registered; perhaps its module has not been imported.
    """
    if config not in _DETECTORS:
        raise TypeError(f"No detector is built from {config.__name__}; decorate one with @jaxseg.models.detector_of({config.__name__}).")
    return _DETECTORS[config]
