"""The batches for the validation loss: every image once, whole, with its ground truth."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from jaxseg.data.sources.dataset import DataError, InstanceDataset
from jaxseg.data.stream.input_groups import InputGroups
from jaxseg.data.stream.rows import Row, collate
from jaxseg.data.stream.targets import no_targets, to_targets
from jaxseg.data.views.from_spec import view_rule
from jaxseg.data.views.view import ViewRule
from jaxseg.structures import Batch, InputSpec

logger = logging.getLogger("jaxseg")

_THREADS = 4
# The number of batches that the threads prepare in advance.
_BATCHES_AHEAD = 2


def evaluation_batches(
    dataset: InstanceDataset,
    spec: InputSpec,
    *,
    batch_size: int,
    max_objects: int,
    process_index: int = 0,
    process_count: int = 1,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields every image once and whole, in order but grouped by the size of the input.

    Threads read images in advance.

    Args:
        dataset: the images.
        spec: the input that the detector requires.
        batch_size: the number of rows of each batch of this process.
        max_objects: the number of rows of ground truth per image.
        process_index, process_count: this process takes every `process_count`-th image of a group,
            starting at `process_index`.
        indices: the indices of the images to use; None uses all.

    Yields:
        Batches with float32 images. All processes get the same number of batches, with the same
        input sizes in the same order. A row without an image has `valid` False and index -1, and so
        has the row of a broken image, which is also reported in the log.
    """
    rule = view_rule(spec)
    parts: list[tuple[tuple[int, int], list[int]]] = []
    for input_size, wanted in InputGroups.of(dataset, rule, indices).by_input_size():
        mine = wanted[process_index::process_count]
        count = -(-len(wanted) // (batch_size * process_count))
        parts += [(input_size, mine[i * batch_size : (i + 1) * batch_size]) for i in range(count)]

    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[list[Future[Row | None]]] = deque()
        try:
            for i, (input_size, _) in enumerate(parts):
                for _, part in parts[i + len(ahead) : i + 1 + _BATCHES_AHEAD]:
                    ahead.append([pool.submit(_load, dataset, index, rule, max_objects) for index in part])
                loaded = [future.result() for future in ahead.popleft()]
                rows = [row for row in loaded if row]
                padding = Row(np.zeros((*input_size, 3), np.float32), input_size, -1, no_targets(spec, max_objects, input_size))
                yield collate(rows + [padding] * (batch_size - len(rows)))
        finally:
            pool.shutdown(cancel_futures=True)


def _load(dataset: InstanceDataset, index: int, rule: ViewRule, max_objects: int) -> Row | None:
    """Loads one image with its ground truth; returns None if the image is broken."""
    try:
        sample = dataset[index]
    except DataError as error:
        logger.warning("Image %d is left out of the evaluation: %s", index, error)
        return None
    view = rule.whole(sample.picture_size)
    return Row(view.evaluation_image(sample.image), view.image_size, index, to_targets(sample, view, rule.spec, max_objects))
