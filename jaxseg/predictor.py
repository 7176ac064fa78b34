"""Pictures in, objects out."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.config import Config, ConfigError
from jaxseg.evaluation.detect import (
    DeviceDetector,
    Selection,
    Sizes,
    Started,
    one_ahead,
    prepare,
    select,
    start_batches,
    to_picture,
    with_nms,
)
from jaxseg.evaluation.masks import MASK_THRESHOLD, encode_rle, polygons
from jaxseg.ops.masks import resize_masks
from jaxseg.pictures import ImageError
from jaxseg.structures import AnyArray, Detections

# On accelerators masks over the whole picture are resized on a canvas of a multiple of this many pixels, so that few sizes are compiled.
_CANVAS_STEP = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The objects of one picture, best first.

    Attributes:
        boxes: float32 `[n, 4]`, `x1, y1, x2, y2` in pixels of the picture, clipped to it.
        masks: bool `[n, H, W]`; None where the detector has no masks.
        scores: float32 `[n]`, 0..1.
        classes: int32 `[n]`, 0 .. C-1.
        names: the name of each object's class.
    """

    boxes: np.ndarray
    masks: np.ndarray | None
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)


class Predictor:
    """Finds objects in pictures of any sizes.

    Pictures are detected in batches of 1, 2, 4, ... up to `batch_size`, filled up where needed, so that few programs are
    compiled; the host finishes one batch while the device works on the next. A batch has inputs of one shape, so where the
    detector knows several, pictures may overtake each other on the way; answers come in the order of the pictures.

    Args:
        config: of the detector. `data.class_names` gives the names; where it is empty they are "class 0", "class 1", ...
        variables: its parameters and statistics, from `init_variables` or `load_weights`.
        score_threshold: keep objects with a score above it; 0 keeps all.
        top_k: keep at most so many of a picture; 0 keeps all.
        nms: of YOLACT, instead of `config.model.detection.nms`: "fast", "cross_class" or "greedy".
        batch_size: the largest batch, a power of two; 0 takes the largest one up to `config.eval.batch_size`.

    Raises:
        ConfigError: for an option out of range.
    """

    def __init__(
        self,
        config: Config,
        variables: Any,
        *,
        score_threshold: float = 0.0,
        top_k: int = 0,
        nms: Literal["fast", "cross_class", "greedy"] | None = None,
        batch_size: int = 0,
    ) -> None:
        if batch_size < 0 or batch_size & (batch_size - 1):
            raise ConfigError(f"batch_size = {batch_size} is no power of two; use 1, 2, 4, 8, ...")
        config = with_nms(config, nms)
        self.class_names = config.data.class_names or tuple(f"class {k}" for k in range(config.model.num_classes))
        self._selection = Selection(score_threshold, top_k)
        batch_size = batch_size or 1 << (config.eval.batch_size.bit_length() - 1)
        self._batch_sizes = [1 << i for i in range(batch_size.bit_length())]
        device = jax.local_devices()[0]
        self._detector = DeviceDetector(config, variables, [device], fixed=device.platform == "cpu")
        spec = self._detector.spec
        # Cells over boxes are few, and quickly pasted by the host.
        self._masks_on_device = device.platform != "cpu" and spec.mask_frame == "image" and spec.resize.rule == "stretch"
        # Pictures of each shape in turn still fill their batches.
        self._patience = len(spec.image_sizes) * batch_size

    @overload
    def __call__(self, images: np.ndarray) -> Prediction: ...

    @overload
    def __call__(self, images: Sequence[np.ndarray]) -> list[Prediction]: ...

    def __call__(self, images: np.ndarray | Sequence[np.ndarray]) -> Prediction | list[Prediction]:
        """The objects of one picture, or of each in a list.

        Args:
            images: uint8 `[H, W, 3]`, RGB; grey `[H, W]` and RGBA `[H, W, 4]` are converted, alpha is dropped.

        Raises:
            ImageError: for anything else, before anything is detected.
        """
        if not isinstance(images, list | tuple):
            return next(self.stream([rgb_image(images)]))
        return list(self.stream([rgb_image(image, f"Picture {i}") for i, image in enumerate(images)]))

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """The objects of each of many pictures, which are asked for as they are needed: nothing keeps all of them.

        Raises:
            ImageError: at the first picture that cannot be used.
        """
        finished: dict[int, Callable[[], Prediction]] = {}
        given = 0
        for batch, packed in one_ahead(self._submit(images)):
            detections = batch.detections if packed is None else dataclasses.replace(batch.detections, masks=None)
            on_host = jax.device_get(detections)
            for row, (index, sizes) in enumerate(zip(batch.indices, batch.sizes, strict=True)):
                finished[index] = functools.partial(self._finish, on_host, row, sizes, None if packed is None else packed[row])
            while given in finished:
                yield finished.pop(given)()
                given += 1

    def _submit(self, images: Iterable[np.ndarray]) -> Iterator[tuple[Started, list[jax.Array] | None]]:
        """Starts detection batch by batch: what is found, and masks packed at canvas size."""
        pictures = (prepare(i, rgb_image(image, f"Picture {i}"), self._detector.spec) for i, image in enumerate(images))
        for batch in start_batches(self._detector, pictures, self._batch_sizes, self._patience):
            masks, packed = batch.detections.masks, None
            if self._masks_on_device and masks is not None:
                packed = [_packed_row(masks, row, sizes.picture) for row, sizes in enumerate(batch.sizes)]
            yield batch, packed

    def _finish(self, detections: Detections, row: int, sizes: Sizes, packed: jax.Array | None) -> Prediction:
        selected = select(detections, row, self._selection)
        boxes, masks = to_picture(selected, sizes, self._detector.spec)
        if packed is not None:
            # The rows are in order of score, so the wanted ones come first.
            bits = np.asarray(packed)[: len(selected.scores)]
            height, width = sizes.picture
            masks = np.unpackbits(bits, axis=2, count=_canvas(sizes.picture)[1])[:, :height, :width].astype(bool)
        return Prediction(
            boxes=boxes,
            masks=masks,
            scores=selected.scores,
            classes=selected.classes,
            names=tuple(self.class_names[k] for k in selected.classes),
        )


def _canvas(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // _CANVAS_STEP) * _CANVAS_STEP for side in size)
    return height, width


def _packed_row(masks: AnyArray, row: int, image_size: tuple[int, int]) -> jax.Array:
    # The row is data, so that all rows have one program.
    soft_masks = jax.lax.dynamic_index_in_dim(masks, row, keepdims=False)
    return _packed_masks(soft_masks, np.array(image_size, np.int32), _canvas(image_size))


@functools.partial(jax.jit, static_argnames="canvas")
def _packed_masks(soft_masks: jax.Array, image_size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    """Masks of one picture on a canvas, one bit a pixel along x: a 32nd of what the host would else have to fetch."""
    return jnp.packbits(resize_masks(soft_masks, image_size, canvas) > MASK_THRESHOLD, axis=2)


def rgb_image(image: Any, whose: str = "The picture") -> np.ndarray:
    """A picture as uint8 `[H, W, 3]`: grey is repeated, an alpha channel is dropped, all else is refused.

    Args:
        image: an array.
        whose: the subject of the error's sentence.

    Raises:
        ImageError: it is no uint8 array of a picture's shape, or is empty.
    """
    right = "it must be a uint8 array [height, width, 3], RGB 0..255 (grey [height, width] and RGBA are converted)"
    if not hasattr(image, "__array__"):
        raise ImageError(f"{whose} is a {type(image).__name__}; {right}.")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ImageError(f"{whose} has dtype {array.dtype}; {right}.")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(f"{whose} has shape {list(np.shape(image))}; {right}.")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]


def as_json(prediction: Prediction) -> list[dict[str, Any]]:
    """The objects of one picture as plain dicts and numbers, masks both as run lengths and as polygons."""
    rows: list[dict[str, Any]] = [
        {"box": box, "class": number, "name": name, "score": score}
        for box, number, name, score in zip(
            prediction.boxes.tolist(), prediction.classes.tolist(), prediction.names, prediction.scores.tolist(), strict=True
        )
    ]
    if prediction.masks is None:
        return rows
    rles = encode_rle(prediction.masks)
    return [{**row, "rle": rle, "polygons": polygons(mask)} for row, rle, mask in zip(rows, rles, prediction.masks, strict=True)]
