"""The predictor, which detects the objects in pictures of any size."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from jaxseg.config import Config, ConfigError
from jaxseg.data.stream.batch_memory import check_batch_memory
from jaxseg.data.views.view import View
from jaxseg.evaluation.detect import (
    DeviceDetector,
    Selection,
    Started,
    one_ahead,
    prepare,
    select,
    start_batches,
    to_crops,
    with_nms,
)
from jaxseg.evaluation.masks import MASK_THRESHOLD, decode_rle, encode_crops, polygons, whole_masks
from jaxseg.memory import require_memory
from jaxseg.ops.masks import resize_masks
from jaxseg.pictures import ImageError, read_picture
from jaxseg.structures import AnyArray, Detections, MaskCrop

logger = logging.getLogger(__name__)

# On accelerators, masks over the input are resized to a canvas whose sides are multiples of this
# many pixels, so that few sizes are compiled.
_CANVAS_STEP = 128
# The largest canvas in pixels; a hundred masks of this size in float32 take 6 GB.
_LARGEST_CANVAS = 1 << 24

MaskForm = Literal["full", "rle", "crop"]
Picture = np.ndarray | PIL.Image.Image | str | Path


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The objects of one picture in descending order of their scores.

    Attributes:
        boxes: float32 `[n, 4]`, `x1, y1, x2, y2` in pixels of the picture, clipped to it.
        masks: the masks in the form that was requested from `Predictor`: bool `[n, H, W]`; n run
            lengths in COCO's compressed form, `{"size": [H, W], "counts": text}`; or n `MaskCrop`s.
            None if the detector has no masks.
        scores: float32 `[n]`, 0..1.
        classes: int32 `[n]`, 0 .. C-1.
        names: the name of each object's class.
        picture_size: the height and width of the picture.
        mask_scores: float32 `[n]`, the scores of the masks, if the detector rescores them (the
            product of the score and an estimated IoU in YOLACT++); else None.
    """

    boxes: np.ndarray
    masks: Any
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    picture_size: tuple[int, int]
    mask_scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


class Predictor:
    """Detects objects in pictures of any size.

    Pictures are processed in batches of 1, 2, 4, ... up to `batch_size`, which are padded if
    necessary, so that few programs are compiled. The host finishes one batch while the device works
    on the next. All inputs of a batch have one size. If the detector has several input sizes,
    pictures can therefore be processed in another order, but the results are always in the order of
    the pictures.

    By default, R-CNN and RetinaNet get each picture padded to multiples of 32 pixels, as in the
    originals. Each such size has its own program, which is compiled when the size is first met.
    With `config.eval.canvas = "shapes"`, there is one for landscapes and one for portraits.

    Args:
        config: the configuration of the detector. `data.class_names` gives the names of the
            classes; if it is empty, they are "class 0", "class 1", ...
        variables: its parameters and statistics, from `init_variables` or `load_weights`.
        score_threshold: drops objects with this score or a lower one; 0 keeps all.
        top_k: the largest number of objects to keep in a picture; 0 keeps all.
        nms: for YOLACT, the rule that replaces `config.model.detection.nms`: "fast", "cross_class"
            or "greedy".
        batch_size: the largest batch size, a power of two; 0 takes the largest power of two up to
            `config.eval.batch_size`, or 1 if each picture has its own canvas: pictures of several
            sizes rarely fill a batch, and each batch size has its own programs.
        masks: the form of the masks, see `Prediction`. A "full" mask takes one byte per pixel of
            the picture. The memory of "rle" (run lengths) and "crop" (the part around the object)
            depends on the size of the object and not on that of the picture.

    Raises:
        ConfigError: an option is out of range.
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
        masks: MaskForm = "full",
    ) -> None:
        if masks not in get_args(MaskForm):
            raise ConfigError(f"masks = {masks!r} is not one of {', '.join(map(repr, get_args(MaskForm)))}.")
        if batch_size < 0 or batch_size & (batch_size - 1):
            raise ConfigError(f"batch_size = {batch_size} is no power of two; use 1, 2, 4, 8, ...")
        config = with_nms(config, nms)
        self.class_names = config.data.class_names or tuple(f"class {k}" for k in range(config.model.num_classes))
        self._selection = Selection(score_threshold, top_k)
        self._mask_form: MaskForm = masks
        device = jax.local_devices()[0]
        self._detector = DeviceDetector(config, variables, [device], fixed=device.platform == "cpu")
        logger.info("detecting with %s", self._detector.canvas)
        spec = self._detector.spec
        if not batch_size:
            batch_size = 1 if self._detector.rule.canvas == "own" else 1 << (config.eval.batch_size.bit_length() - 1)
        self._batch_sizes = [1 << i for i in range(batch_size.bit_length())]
        check_batch_memory(spec, batch_size, 0, "batch_size", bytes_per_color=4)
        # Masks over boxes have few cells, so the host pastes them quickly.
        self._masks_on_device = device.platform != "cpu" and spec.mask_frame == "image"
        # Even if pictures of all input sizes alternate, they fill their batches.
        self._patience = len(spec.input_sizes) * batch_size

    @overload
    def __call__(self, images: Picture) -> Prediction: ...

    @overload
    def __call__(self, images: Sequence[Picture]) -> list[Prediction]: ...

    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """Detects the objects in one picture, or in each picture of a list or tuple.

        Args:
            images: uint8 `[H, W, 3]`, RGB; or grey `[H, W]` or RGBA `[H, W, 4]`, which are
                converted, where alpha is dropped; or a Pillow image of any mode, whose EXIF
                orientation is ignored; or the path of a file, whose EXIF orientation is applied.

        Raises:
            ImageError: a picture has another form, which is checked before any detection; or the
                "full" masks of a picture would not fit into memory.
        """
        if not isinstance(images, list | tuple):
            return next(self.stream([rgb_image(images)]))
        return list(self.stream([rgb_image(image, f"Picture {i}") for i, image in enumerate(images)]))

    def stream(self, images: Iterable[Picture]) -> Iterator[Prediction]:
        """Yields the objects of each of many pictures, which are read only when they are needed.

        Raises:
            ImageError: a picture cannot be used; the error is raised when that picture is reached.
        """
        finished: dict[int, Callable[[], Prediction]] = {}
        given = 0
        for batch, packed in one_ahead(self._submit(images)):
            detections = batch.detections if packed is None else dataclasses.replace(batch.detections, masks=None)
            on_host = jax.device_get(detections)
            for row, (index, view) in enumerate(zip(batch.indices, batch.views, strict=True)):
                finished[index] = functools.partial(self._finish, on_host, row, view, None if packed is None else packed[row])
            while given in finished:
                yield finished.pop(given)()
                given += 1

    def _submit(self, images: Iterable[Picture]) -> Iterator[tuple[Started, list[jax.Array] | None]]:
        """Starts detection batch by batch; yields detections with masks packed at canvas size."""
        pictures = (prepare(i, rgb_image(image, f"Picture {i}"), self._detector.rule) for i, image in enumerate(images))
        for batch in start_batches(self._detector, pictures, self._batch_sizes, self._patience):
            masks, packed = batch.detections.masks, None
            # The host makes the masks of very large pictures, one by one.
            largest = max(math.prod(_canvas(view.picture_size)) for view in batch.views)
            # The resize on the device requires pictures that fill the input.
            filled = all(view.image_size == view.input_size for view in batch.views)
            if self._masks_on_device and masks is not None and filled and largest <= _LARGEST_CANVAS:
                packed = [_packed_row(masks, row, view.picture_size) for row, view in enumerate(batch.views)]
            yield batch, packed

    def _finish(self, detections: Detections, row: int, view: View, packed: jax.Array | None) -> Prediction:
        selected = select(detections, row, self._selection)
        boxes, crops = to_crops(selected, view, self._detector.spec)
        if packed is not None:
            # The rows are in descending order of scores, so the selected ones come first.
            crops = _unpacked(np.asarray(packed)[: len(selected.scores)], view.picture_size)
        return Prediction(
            boxes=boxes,
            masks=None if crops is None else self._formed(crops, view.picture_size, len(boxes)),
            scores=selected.scores,
            classes=selected.classes,
            names=tuple(self.class_names[k] for k in selected.classes),
            picture_size=view.picture_size,
            mask_scores=selected.mask_scores,
        )

    def _formed(self, crops: Iterator[MaskCrop], size: tuple[int, int], count: int) -> Any:
        """Converts the masks of a picture of this height and width to the requested form."""
        if self._mask_form == "crop":
            return list(crops)
        if self._mask_form == "rle":
            return encode_crops(crops, size)
        what = f"{count} masks of {size[1]} x {size[0]} pixels (width x height)"
        remedy = 'Predictor(..., masks="rle") or masks="crop" needs little'
        require_memory(count * math.prod(size), what, remedy, error=ImageError, share=0.5)
        return whole_masks(crops, size, count)


def _unpacked(bits: np.ndarray, size: tuple[int, int]) -> Iterator[MaskCrop]:
    for rows in bits:
        yield MaskCrop(0, 0, np.unpackbits(rows, axis=1, count=_canvas(size)[1])[: size[0], : size[1]].astype(bool))


def _canvas(size: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-side // _CANVAS_STEP) * _CANVAS_STEP for side in size)
    return height, width


def _packed_row(masks: AnyArray, row: int, picture_size: tuple[int, int]) -> jax.Array:
    # The row is an argument of the compiled program, so that one program works for all rows.
    soft_masks = jax.lax.dynamic_index_in_dim(masks, row, keepdims=False)
    return _packed_masks(soft_masks, np.array(picture_size, np.int32), _canvas(picture_size))


@functools.partial(jax.jit, static_argnames="canvas")
def _packed_masks(soft_masks: jax.Array, picture_size: jax.Array, canvas: tuple[int, int]) -> jax.Array:
    """Resizes the masks of one picture to a canvas, and packs them along x as one bit per pixel.

    The host then fetches only 1/32 of the bytes of float32 masks.
    """
    return jnp.packbits(resize_masks(soft_masks, picture_size, canvas) > MASK_THRESHOLD, axis=2)


def rgb_image(image: Any, whose: str = "The picture") -> np.ndarray:
    """Converts a picture to uint8 `[H, W, 3]`; grey is repeated, and an alpha channel is dropped.

    Args:
        image: an array, a Pillow image, or the path of a file.
        whose: the subject of the sentence in error messages.

    Raises:
        ImageError: the array is empty, or is not uint8 with the shape of a picture; or the file
            does not contain a picture.
    """
    if isinstance(image, str | Path):
        return read_picture(image)
    right = (
        "it must be a uint8 array [height, width, 3], RGB 0..255 (grey [height, width] and RGBA are converted), a Pillow image or a path"
    )
    try:
        # Images of modes such as palettes and CMYK do not hold RGB values yet.
        array = np.asarray(image.convert("RGB") if isinstance(image, PIL.Image.Image) else image)
    except (ValueError, TypeError, OSError) as error:
        raise ImageError(f"{whose} is no array ({str(error).splitlines()[0][:100]}); {right}.") from None
    if not hasattr(image, "__array__") and not hasattr(image, "__array_interface__"):
        raise ImageError(f"{whose} is a {type(image).__name__}; {right}.")
    if array.dtype != np.uint8:
        raise ImageError(f"{whose} has dtype {array.dtype}; {right}.")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(f"{whose} has shape {list(np.shape(image))}; {right}.")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]


def as_json(prediction: Prediction) -> list[dict[str, Any]]:
    """Converts the objects of one picture to plain dictionaries and numbers.

    Masks of any form are given both as run lengths and as polygons.
    """
    rows: list[dict[str, Any]] = [
        {"box": box, "class": number, "name": name, "score": score}
        for box, number, name, score in zip(
            prediction.boxes.tolist(), prediction.classes.tolist(), prediction.names, prediction.scores.tolist(), strict=True
        )
    ]
    if prediction.mask_scores is not None:
        rows = [{**row, "mask_score": score} for row, score in zip(rows, prediction.mask_scores.tolist(), strict=True)]
    if prediction.masks is None:
        return rows
    crops = [_as_crop(mask) for mask in prediction.masks]
    rles = encode_crops(crops, prediction.picture_size)
    outlines = [polygons(crop.bits, (crop.left, crop.top)) for crop in crops]
    return [{**row, "rle": rle, "polygons": outline} for row, rle, outline in zip(rows, rles, outlines, strict=True)]


def _as_crop(mask: Any) -> MaskCrop:
    if isinstance(mask, MaskCrop):
        return mask
    return MaskCrop(0, 0, decode_rle([mask])[0] if isinstance(mask, dict) else mask)
