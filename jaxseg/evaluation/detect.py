"""The device's half of detection, which the evaluator and the predictor share, and the host's first look at its answer."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.config import Config, ConfigError
from jaxseg.models import build_model
from jaxseg.structures import Detections

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which detections of an image are wanted.

    Attributes:
        score_threshold: keeps scores above it; 0 keeps all.
        top_k: keeps the best so many; 0 keeps all.

    Raises:
        ConfigError: for a value out of range.
    """

    score_threshold: float = 0.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score_threshold = {self.score_threshold} is out of range; it must be between 0 and 1.")
        if self.top_k < 0:
            raise ConfigError(f"top_k = {self.top_k} is out of range; it must be 0 (all) or more.")


class Selected(NamedTuple):
    """The detections of one image that are wanted, best first, as NumPy arrays.

    Attributes:
        boxes: float32 `[n, 4]`, `x1, y1, x2, y2` in pixels of the network's input.
        scores: float32 `[n]`.
        classes: int32 `[n]`.
        soft_masks: float32 `[n, h, w]` at prototype resolution, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    soft_masks: np.ndarray | None


class DeviceDetector:
    """A detector with its variables on some of this process's devices; compiles once for each size of batch.

    Args:
        config: its `model` says which detector.
        variables: as `init_variables` gives them; arrays on a mesh of several processes are fine.
        devices: the batch is split over them.
        fixed: compile the variables into the program, which is 5 % faster on a CPU: for variables that do not change.

    Attributes:
        image_size: height and width of the network's input.
        devices: how many.
    """

    def __init__(self, config: Config, variables: Any, devices: Sequence[jax.Device], *, fixed: bool = False) -> None:
        self.image_size = build_model(config).input_spec.image_sizes[0]
        self.devices = len(devices)
        mesh = Mesh(np.array(devices), ("data",))
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._variables = jax.device_put(jax.tree.map(_local, variables), NamedSharding(mesh, PartitionSpec()))
        program = _detect_program(config)
        bound = functools.partial(program, self._variables)
        self._program = jax.jit(bound) if fixed else bound

    def __call__(self, images: np.ndarray, image_sizes: np.ndarray) -> Detections:
        """Starts detection and returns without waiting for it.

        Args:
            images: float32 `[B, h, w, 3]` at network size, RGB 0..255; B is a multiple of `devices`.
            image_sizes: int32 `[B, 2]`, height and width of the pictures.
        """
        return self._program(*jax.device_put((images, image_sizes), self._split))


@functools.lru_cache(maxsize=8)
def _detect_program(config: Config) -> Callable[..., Detections]:
    """One jitted function a config, so that evaluating again during training compiles nothing."""
    model = build_model(config)
    return jax.jit(lambda variables, images, sizes: model.apply(variables, images, sizes, method="detect"))


def _local(array: Any) -> Any:
    """A copy that this process can use alone, of an array that all processes hold in full."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array.addressable_data(0)
    return array


def pad_batch(images: Sequence[np.ndarray], image_sizes: Sequence[tuple[int, int]], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Network images and picture sizes as arrays of `batch_size` rows; the rows that fill up are black, of one pixel."""
    batch = np.zeros((batch_size, *images[0].shape), np.float32)
    sizes = np.ones((batch_size, 2), np.int32)
    batch[: len(images)] = images
    sizes[: len(images)] = image_sizes
    return batch, sizes


def one_ahead(submitted: Iterable[T]) -> Iterator[T]:
    """Yields each item after asking for the next: where asking starts work on a device, the work overlaps with the caller's."""
    iterator = iter(submitted)
    try:
        waiting = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield waiting
        waiting = item
    yield waiting


def select(detections: Detections, row: int, selection: Selection) -> Selected:
    """The wanted detections of image `row` of a batch (NumPy arrays)."""
    scores = np.asarray(detections.scores[row])
    keep = np.asarray(detections.valid[row]) & ((scores > selection.score_threshold) | (selection.score_threshold == 0))
    # Best first, so what is kept comes first, and slices copy nothing.
    count = min(int(keep.sum()), selection.top_k or keep.size)
    masks = None if detections.masks is None else np.asarray(detections.masks[row])[:count]
    return Selected(np.asarray(detections.boxes[row])[:count], scores[:count], np.asarray(detections.classes[row])[:count], masks)
