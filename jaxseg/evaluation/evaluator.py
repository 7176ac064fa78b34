"""The evaluation of a detector on a dataset with COCO's metrics.

Batches are spread over all devices, and the host works on the previous batch meanwhile.
"""

import functools
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxseg.config import Config, ConfigError
from jaxseg.data.sources.dataset import DataError, InstanceDataset, decode_image
from jaxseg.data.sources.from_config import open_dataset, resolve_classes
from jaxseg.data.stream.batch_memory import check_batch_memory
from jaxseg.data.stream.input_groups import InputGroups
from jaxseg.data.views.view import View, ViewRule
from jaxseg.evaluation.coco_metrics import CocoResults, coco_metrics, coco_results, merge_results
from jaxseg.evaluation.detect import DeviceDetector, Prepared, Selection, one_ahead, prepare, select, start_batches, to_crops
from jaxseg.evaluation.masks import encode_crops
from jaxseg.files import write_text
from jaxseg.structures import Detections, InputSpec

logger = logging.getLogger(__name__)

_THREADS = 8
_SECONDS_BETWEEN_LINES = 5.0


def evaluate(
    config: Config,
    variables: Any,
    dataset: InstanceDataset | None = None,
    *,
    batch_size: int = 0,
    limit: int = 0,
    mesh: Mesh | None = None,
    score_threshold: float = 0.0,
    top_k: int = 0,
    output: str | Path | None = None,
) -> dict[str, float]:
    """Evaluates the boxes and, if there are any, the masks of a detector with COCO's metrics.

    If a run has several processes, all of them call this function. Each detects objects in its
    share of the images, and returns the metrics of all.

    Args:
        config: the configuration of the detector.
        variables: its parameters and statistics, from `load_weights` or `init_variables`.
        dataset: images with as many categories as the detector has classes; by default, the
            validation images of `config.data`.
        batch_size: the number of images of a process that are on its devices at a time, which is
            rounded up to a multiple of the devices; 0 takes `config.eval.batch_size`.
        limit: the number of images to evaluate, from the start; 0 evaluates all.
        mesh: the devices to use; by default, all.
        score_threshold: drops detections with this score or a lower one; COCO's AP needs 0.
        top_k: the largest number of detections to keep of an image; 0 keeps all.
        output: a folder to write metrics.json and the detections in COCO's JSON form to; by
            default, nothing is written.

    Returns:
        The metrics by name, such as `box/AP`, `box/AP50` and `mask/AP`; each is in 0..1, or NaN if
        there is no object to find. `coco_metrics` lists all of them.

    Raises:
        ConfigError: the detector has another number of classes than the dataset, the detector has
            masks and the dataset was opened without masks, or an option is out of range.
        DataError: the validation images cannot be used.
    """
    selection = Selection(score_threshold, top_k)
    dataset = open_dataset(resolve_classes(config), "val") if dataset is None else dataset
    batch_size = batch_size or config.eval.batch_size
    if len(dataset.category_ids) != config.model.num_classes:
        raise ConfigError(
            f"config.model.num_classes = {config.model.num_classes}, but the dataset has {len(dataset.category_ids)} categories; "
            "evaluate on the dataset the detector was made for."
        )
    detector = DeviceDetector(config, variables, jax.local_devices() if mesh is None else mesh.local_devices)
    if detector.spec.mask_size is not None and not dataset.has_masks:
        raise ConfigError("The detector of config.model has masks, but the dataset was opened without; open it with the same config.")
    check_batch_memory(detector.spec, batch_size, 0, "config.eval.batch_size", bytes_per_color=4)
    indices = range(min(limit, len(dataset)) if limit else len(dataset))
    own = indices[jax.process_index() :: jax.process_count()]
    results = _gather(detect_dataset(detector, dataset, own, batch_size=batch_size, selection=selection))
    metrics = coco_metrics(dataset.coco_ground_truth(), results, dataset.category_ids, dataset.class_names)
    if output is not None and jax.process_index() == 0:
        write_results(Path(output), metrics, results)
    return metrics


def detect_dataset(
    detector: DeviceDetector, dataset: InstanceDataset, indices: Sequence[int], *, batch_size: int, selection: Selection
) -> CocoResults:
    """Detects objects in some images of a dataset, in COCO's results format.

    While the devices compute a batch, the host finishes the previous one. An image that cannot be
    read is named in the log and counts as one without detections.

    Args:
        detector: the detector.
        dataset: the dataset.
        indices: the indices of the images.
        batch_size: the number of images on the devices at a time, which is rounded up to a multiple
            of the devices.
        selection: which detections to keep.
    """
    groups = _groups(detector, dataset, indices, batch_size)
    logger.info("evaluating with %s: %s", detector.canvas, "1 program" if len(groups) == 1 else f"{len(groups)} programs")
    parts: dict[int, CocoResults] = {}
    progress = _Progress(len(indices))
    order = [index for group in groups for index in group.indices]
    # There are two pools, so that finished detections do not wait for images that are loaded ahead.
    with ThreadPoolExecutor(_THREADS) as loading, ThreadPoolExecutor(_THREADS) as finishing:
        images = _load_ahead(loading, dataset, order, rule=detector.rule, depth=2 * batch_size)
        # Group by group, so that few pictures wait until their batch is full.
        started = itertools.chain.from_iterable(
            start_batches(detector, filter(None, itertools.islice(images, len(group.indices))), (group.rows,)) for group in groups
        )
        finish = functools.partial(_finish, dataset=dataset, spec=detector.spec, selection=selection)
        for batch in one_ahead(started):
            on_host = jax.device_get(batch.detections)
            jobs = {
                index: finishing.submit(finish, on_host, row, index=index, view=view)
                for row, (index, view) in enumerate(zip(batch.indices, batch.views, strict=True))
            }
            parts |= {index: job.result() for index, job in jobs.items()}
            progress.advance(len(jobs))
    if len(detector.compilations) > 1:
        logger.info("compiled %d programs in %.0f s", len(detector.compilations), sum(detector.compilations))
    # Batches were formed by the size of the input, so the results are put in order here.
    found = merge_results([parts[index] for index in indices if index in parts])
    masks = None if detector.spec.mask_size is None else found.masks
    return CocoResults(found.boxes, masks, [dataset.image_ids[index] for index in indices])


class _Group(NamedTuple):
    """Images whose inputs have one size, and the number of rows of their batches."""

    indices: list[int]
    rows: int


def _groups(detector: DeviceDetector, dataset: InstanceDataset, indices: Sequence[int], batch_size: int) -> list[_Group]:
    """Groups images by the size of their input, so that each group has one program.

    If pictures have their own canvas, there are many groups, of which some are small. Their images
    are divided evenly among as few batches as possible, so that almost no row is padding.
    """
    groups = []
    for _, members in InputGroups.of(dataset, detector.rule, indices).by_input_size() if len(indices) else ():
        rows = batch_size
        if detector.rule.canvas == "own":
            rows = math.ceil(len(members) / math.ceil(len(members) / batch_size))
        groups.append(_Group(members, math.ceil(rows / detector.devices) * detector.devices))
    return groups


def _finish(
    detections: Detections, row: int, *, dataset: InstanceDataset, index: int, view: View, spec: InputSpec, selection: Selection
) -> CocoResults:
    """Converts one image's detections to the picture's size and COCO's format.

    Its masks are encoded at once as run lengths, so that few of them are in memory.
    """
    selected = select(detections, row, selection)
    boxes, crops = to_crops(selected, view, spec)
    rles = None if crops is None else encode_crops(crops, view.picture_size)
    return coco_results(
        dataset.image_ids[index],
        boxes=boxes,
        classes=selected.classes,
        scores=selected.scores,
        mask_scores=selected.mask_scores,
        rles=rles,
        category_ids=dataset.category_ids,
    )


def _load_ahead(
    pool: ThreadPoolExecutor, dataset: InstanceDataset, indices: Iterable[int], *, rule: ViewRule, depth: int
) -> Iterator[Prepared | None]:
    """Yields the images in order, loading `depth` images ahead; None stands for an unreadable one."""
    waiting: deque[Future[Prepared | None]] = deque()

    def ready(keep: int) -> Iterator[Prepared | None]:
        while len(waiting) > keep:
            yield waiting.popleft().result()

    for index in indices:
        waiting.append(pool.submit(_load, dataset, index, rule))
        yield from ready(depth)
    yield from ready(0)


def _load(dataset: InstanceDataset, index: int, rule: ViewRule) -> Prepared | None:
    height, width = dataset.picture_sizes[index]
    try:
        image = decode_image(dataset.encoded_image(index), (int(height), int(width)), dataset.file_names[index])
    except DataError as error:
        logger.warning("%s It counts as an image without detections.", error)
        return None
    return prepare(index, image, rule)


def _gather(results: CocoResults) -> CocoResults:
    """Collects the results of all processes in each of them."""
    if jax.process_count() == 1:
        return results
    text = np.frombuffer(json.dumps(results).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return merge_results([CocoResults(*json.loads(row[:size].tobytes())) for row, size in zip(rows, sizes, strict=True)])


def write_results(output: Path, metrics: Mapping[str, float], results: CocoResults) -> None:
    """Writes metrics.json, bbox_detections.json and, if there are masks, mask_detections.json.

    NaN is null in metrics.json. The names are those of YOLACT's original;
    `pycocotools.coco.COCO.loadRes` and COCO's server read the two files of detections.
    """
    output.mkdir(parents=True, exist_ok=True)
    numbers = {key: None if math.isnan(value) else value for key, value in metrics.items()}
    write_text(output / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    write_text(output / "bbox_detections.json", json.dumps(results.boxes))
    masks = output / "mask_detections.json"
    if results.masks is None:
        # An existing file is that of another detector.
        masks.unlink(missing_ok=True)
    else:
        write_text(masks, json.dumps(results.masks))


class _Progress:
    """Logs the progress every few seconds and at the end."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = self._last = time.monotonic()

    def advance(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if self._done < self._total and now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate
        logger.info("evaluated %d of %d images, %.1f images/s, %.0f s left", self._done, self._total, rate, left)
