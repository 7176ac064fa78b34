"""The steps that the evaluator and the predictor share.

They form batches of pictures, run the detector on devices, and convert detections to the picture.
"""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseg.config import Config, ConfigError
from jaxseg.data.views.from_spec import view_rule
from jaxseg.data.views.view import View, ViewRule
from jaxseg.devices import on_mesh
from jaxseg.evaluation.masks import crops_in_picture, whole_masks, within_picture
from jaxseg.evaluation.paste import paste_crops
from jaxseg.models import build_model
from jaxseg.ops.implementation import require_implementation
from jaxseg.structures import AnyArray, Detections, InputSpec, MaskCrop

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Selection:
    """The detections of an image to keep.

    Attributes:
        score_threshold: drops detections with this score or a lower one; 0 keeps all.
        top_k: the largest number of detections to keep; 0 keeps all.

    Raises:
        ConfigError: a value is out of range.
    """

    score_threshold: float = 0.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score_threshold = {self.score_threshold} is out of range; it must be between 0 and 1.")
        if self.top_k < 0:
            raise ConfigError(f"top_k = {self.top_k} is out of range; it must be 0 (all) or more.")


# The selection for drawings, with the values that most users of the original choose. The limit
# matters for a detector after little training, which has many detections of the same score.
DRAWN = Selection(score_threshold=0.15, top_k=15)


class Selected(NamedTuple):
    """The selected detections of one image as NumPy arrays, in descending order of their scores.

    Attributes:
        boxes: float32 `[n, 4]`, `x1, y1, x2, y2` in pixels of the network's input.
        scores: float32 `[n]`.
        classes: int32 `[n]`.
        soft_masks: float32 `[n, h, w]`, over the network's input or each over its box, see
            `InputSpec.mask_frame`; None if the detector has no masks.
        mask_scores: float32 `[n]`, the scores by which masks are ranked; None if these are
            `scores`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    soft_masks: np.ndarray | None
    mask_scores: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A picture that is ready for the device.

    Attributes:
        index: the index of the picture.
        image: the network's input, float32 `[h, w, 3]`, RGB 0..255.
        view: the view of the picture that the network sees.
    """

    index: int
    image: np.ndarray
    view: View


class Started(NamedTuple):
    """A batch that the device works on, with the `index` and the view of each picture."""

    indices: list[int]
    views: list[View]
    detections: Detections


def prepare(index: int, picture: np.ndarray, rule: ViewRule) -> Prepared:
    """Puts a picture (uint8 `[H, W, 3]`, RGB) into the network's input."""
    height, width, _ = picture.shape
    view = rule.whole((height, width))
    return Prepared(index, view.evaluation_image(picture), view)


class DeviceDetector:
    """A detector with its variables on some of this process's devices.

    It compiles one program for each combination of input size and batch size.

    Args:
        config: the configuration of the detector.
        variables: its parameters and statistics, as `init_variables` returns them; they can be
            arrays on a mesh of several processes.
        devices: the devices over which each batch is split.
        fixed: whether to compile the variables into the program, which is 5 % faster on a CPU, but
            requires that they never change. It has no effect if the input has several sizes,
            because each size has its own program, which would hold a copy of the variables.

    Attributes:
        spec: the input that the detector requires, and the meaning of its boxes and masks.
        rule: the rule that turns pictures into its inputs, see `config.eval.canvas`.
        devices: the number of devices.
        compilations: the seconds that each compilation has taken.
    """

    def __init__(self, config: Config, variables: Any, devices: Sequence[jax.Device], *, fixed: bool = False) -> None:
        require_implementation(config.model.implementation, "config.model.implementation")
        self.spec: InputSpec = build_model(config).input_spec
        self.rule = view_rule(self.spec, self.spec.evaluation_canvas if config.eval.canvas == "auto" else config.eval.canvas)
        self.devices = len(devices)
        mesh = Mesh(np.array(devices), ("data",))
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._variables = jax.device_put(jax.tree.map(_local, variables), NamedSharding(mesh, PartitionSpec()))
        program = _detect_program(config, mesh)
        self._run: Callable[..., Detections] = functools.partial(program.run, self._variables)
        self._compiled_for = program.compiled_for
        self.compilations: list[float] = []
        if fixed and len(self.spec.input_sizes) == 1 and self.rule.canvas == "shapes":
            self._run, self._compiled_for = jax.jit(self._run), set()

    def __call__(self, images: np.ndarray, image_sizes: np.ndarray) -> Detections:
        """Starts detection and returns without waiting for it.

        Args:
            images: float32 `[B, h, w, 3]`, RGB 0..255, of a size that `rule` gives; B is a multiple
                of `devices`.
            image_sizes: int32 `[B, 2]`, the height and width of each picture within its input.
        """
        compiles, started = images.shape not in self._compiled_for, time.monotonic()
        # Where each picture has its own canvas, dozens of lines would follow the first two.
        level = logging.DEBUG if self.compilations and self.rule.canvas == "own" else logging.INFO
        if compiles:
            logger.log(level, "compiling detection for %d images of %d x %d; it can take a minute", *images.shape[:3])
        detections = self._run(*jax.device_put((images, image_sizes), self._split))
        if compiles:
            self._compiled_for.add(images.shape)
            self.compilations.append(time.monotonic() - started)
            logger.log(level, "compiled in %.0f s", self.compilations[-1])
        return detections

    @property
    def canvas(self) -> str:
        """What pictures are padded to, in words."""
        if self.rule.canvas == "own":
            return f"each picture on its own canvas, padded to multiples of {self.spec.size_divisor} pixels"
        shapes = " or ".join(f"{height} x {width}" for height, width in self.spec.input_sizes)
        return f"pictures {'stretched' if self.spec.resize.rule == 'stretch' else 'padded'} to {shapes} pixels"


class _Program(NamedTuple):
    """A jitted function, and the shapes of images for which it has been compiled."""

    run: Callable[..., Detections]
    compiled_for: set[tuple[int, ...]]


@functools.lru_cache(maxsize=8)
def _detect_program(config: Config, mesh: Mesh) -> _Program:
    """Makes the jitted function of a configuration and devices once, so that it compiles once."""
    model = build_model(config)

    # The function has a name because logs and profiles show it as the name of the program.
    def detect(variables: Any, images: jax.Array, sizes: jax.Array) -> Detections:
        return cast(Detections, model.apply(variables, images, sizes, method="detect"))

    return _Program(jax.jit(on_mesh(detect, mesh)), set())


def _local(array: Any) -> Any:
    """Copies an array that all processes hold in full to one that this process can use alone."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array.addressable_data(0)
    return array


def pad_batch(pictures: Sequence[Prepared], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Stacks pictures whose inputs have one size to the arguments of a `DeviceDetector`.

    Black images pad the batch to `batch_size`.
    """
    input_size = pictures[0].view.input_size
    images = np.zeros((batch_size, *input_size, 3), np.float32)
    image_sizes = np.full((batch_size, 2), input_size, np.int32)
    for row, picture in enumerate(pictures):
        images[row] = picture.image
        image_sizes[row] = picture.view.image_size
    return images, image_sizes


def uniform_batches(pictures: Iterable[Prepared], batch_size: int, patience: float = math.inf) -> Iterator[list[Prepared]]:
    """Yields batches of pictures whose inputs have one size, each in the order of the pictures.

    Args:
        pictures: the pictures, which are requested one by one.
        batch_size: the number of pictures in a full batch; the last batches can have fewer.
        patience: the number of pictures that can follow the first one of a batch before the batch
            is yielded although it is not full.
    """
    waiting: dict[tuple[int, int], tuple[int, list[Prepared]]] = {}
    for number, picture in enumerate(pictures):
        input_size = picture.view.input_size
        batch = waiting.setdefault(input_size, (number, []))[1]
        batch.append(picture)
        if len(batch) == batch_size:
            del waiting[input_size]
            yield batch
        # The first batch in the dictionary has waited longest.
        longest = next(iter(waiting), None)
        if longest is not None and number - waiting[longest][0] >= patience:
            yield waiting.pop(longest)[1]
    for _, batch in waiting.values():
        yield batch


def start_batches(
    detector: DeviceDetector, pictures: Iterable[Prepared], batch_sizes: Sequence[int], patience: float = math.inf
) -> Iterator[Started]:
    """Starts detection batch by batch; see `uniform_batches`.

    Each batch is padded to the next of `batch_sizes`, which are in ascending order.
    """
    for batch in uniform_batches(pictures, batch_sizes[-1], patience):
        rows = next(size for size in batch_sizes if size >= len(batch))
        detections = detector(*pad_batch(batch, rows))
        yield Started([picture.index for picture in batch], [picture.view for picture in batch], detections)


def one_ahead(submitted: Iterable[T]) -> Iterator[T]:
    """Yields each item after it has requested the next one.

    If a request starts work on a device, this work overlaps with that of the caller.
    """
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
    """Selects the detections to keep of image `row` of a batch, which holds NumPy arrays."""
    scores = np.asarray(detections.scores[row])
    keep = np.asarray(detections.valid[row]) & ((scores > selection.score_threshold) | (selection.score_threshold == 0))
    # Scores are in descending order, so the kept rows come first, and slices need no copy.
    count = min(int(keep.sum()), selection.top_k or keep.size)

    def first(rows: AnyArray | None) -> np.ndarray | None:
        return None if rows is None else np.asarray(rows[row])[:count]

    return Selected(
        boxes=np.asarray(detections.boxes[row])[:count],
        scores=scores[:count],
        classes=np.asarray(detections.classes[row])[:count],
        soft_masks=first(detections.masks),
        mask_scores=first(detections.mask_scores),
    )


def to_picture(found: Selected, view: View, spec: InputSpec) -> tuple[np.ndarray, np.ndarray | None]:
    """Converts the boxes and masks of one image to the picture's size.

    Returns:
        boxes: float32 `[n, 4]`, continuous `x1, y1, x2, y2` in pixels of the picture, clipped to
            it.
        masks: bool `[n, H, W]`, or None if the detector has no masks.
    """
    boxes, crops = to_crops(found, view, spec)
    return boxes, None if crops is None else whole_masks(crops, view.picture_size, len(boxes))


def to_crops(found: Selected, view: View, spec: InputSpec) -> tuple[np.ndarray, Iterator[MaskCrop] | None]:
    """Does the same as `to_picture`, but yields the masks one by one as parts of the picture.

    This saves memory, because the whole masks of a large picture take gigabytes.
    """
    corners = view.boxes_in_picture(found.boxes)
    boxes = within_picture(corners, view.picture_size, spec.pixel_offset)
    if found.soft_masks is None:
        return boxes, None
    if spec.mask_frame == "image":
        height, width = (inside / whole for inside, whole in zip(view.image_size, view.input_size, strict=True))
        return boxes, crops_in_picture(found.soft_masks, view.picture_size, (height, width))
    # A mask covers its whole box, including the part outside of the picture.
    if spec.mask_frame == "box":
        corners[:, 2:] += np.float32(spec.pixel_offset)
    return boxes, paste_crops(found.soft_masks, corners, view.picture_size, spec.mask_frame)


def with_nms(config: Config, rule: str | None) -> Config:
    """`config` with another rule of non-maximum suppression; None leaves the rule as it is.

    Raises:
        ConfigError: the detector does not have this rule.
    """
    return config if rule is None else dataclasses.replace(config, model=config.model.with_nms(rule))
