"""The endless stream of training batches: shuffled, seeded, resumable, made by worker processes.

The stream is one sequence of (image, seed) pairs, a function of the run's seed alone. Everything
else only says who makes which part of it: worker processes take whole batches in turn, and process
`p` of `n` makes the `p`-th contiguous piece of each global batch. So neither their numbers nor an
interruption changes what the run sees.

Where the network's input has several sizes (`jaxseg.data.stream.input_groups`), each batch has one
of them, the same on all processes.
"""

import dataclasses
import functools
import logging
from typing import Any, Self

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int64
from numpy import ndarray

from jaxseg.config import AugmentConfig, Config
from jaxseg.data.sources.dataset import DataError, InstanceDataset, Sample
from jaxseg.data.sources.from_config import open_dataset
from jaxseg.data.stream.input_groups import InputGroups, InputStreams, shuffled_slots
from jaxseg.data.stream.rows import Row, collate
from jaxseg.data.stream.targets import to_targets
from jaxseg.data.stream.workers import first_element, start_worker
from jaxseg.data.views.from_spec import view_rule
from jaxseg.data.views.view import ViewRule
from jaxseg.structures import Batch, InputSpec, Targets

logger = logging.getLogger("jaxseg")

# Images drawn in place of a broken one before the dataset as a whole is given up.
REPLACEMENT_TRIES = 100
# Lines of the log that one kind of trouble with images may fill; more is only counted.
LOGGED_IMAGES = 20
# Batches that a worker process, or the thread that stands in for it, makes ahead.
BATCHES_AHEAD = 2
# Deaths of worker processes, with no batch in between, after which the run gives up.
WORKER_RESTARTS = 3


@dataclasses.dataclass(frozen=True)
class TrainingLoader:
    """Makes a training batch from its (image, seed) pairs; travels into the worker processes."""

    dataset: InstanceDataset
    spec: InputSpec
    augment: AugmentConfig
    max_objects: int

    @functools.cached_property
    def rule(self) -> ViewRule:
        """How the detector sees pictures."""
        return view_rule(self.spec)

    @functools.cached_property
    def groups(self) -> InputGroups:
        """The images by the size of their input."""
        return InputGroups.of(self.dataset, self.rule)

    def __call__(self, slots: Int64[ndarray, "b 2"]) -> dict[str, Any]:
        broken: list[tuple[int, str]] = []
        left_out: list[tuple[int, int]] = []
        rows = []
        for index, seed in slots.tolist():
            rng = np.random.default_rng(seed)
            sample = self._read(index, rng, broken)
            row, surplus = self._row(sample, rng)
            rows.append(row)
            if surplus:
                left_out.append((sample.index, surplus))
        batch = collate(rows)
        # Plain dicts, because Grain takes elements apart to share their memory between processes.
        arrays = {**vars(batch), "targets": vars(batch.targets)}
        return {"arrays": arrays, "broken": broken, "left_out": left_out}

    def _read(self, index: int, rng: np.random.Generator, broken: list[tuple[int, str]]) -> Sample:
        """The image, or where it is broken another one of its group, which the seed chooses."""
        for _ in range(REPLACEMENT_TRIES):
            try:
                return self.dataset[index]
            except DataError as error:
                broken.append((index, str(error)))
                alike = self.groups.alike(index)
                index = int(alike[rng.integers(len(alike))])
        raise DataError(f"None of {REPLACEMENT_TRIES} images in a row can be used; the last one: {broken[-1][1]}")

    def _row(self, sample: Sample, rng: np.random.Generator) -> tuple[Row, int]:
        """The augmented picture with its targets, and how many objects found no row."""
        view = self.rule.draw(rng, sample.picture_size, boxes=sample.boxes, crowd=sample.crowd, augment=self.augment)
        targets = to_targets(sample, view, self.spec, self.max_objects)
        surplus = int(view.keeps(sample.boxes).sum()) - int(targets.valid.sum())
        return Row(view.training_image(sample.image), view.image_size, sample.index, targets), surplus


class TrainingIterator:
    """Endless batches for one process. `get_state` and `set_state` resume it exactly, at any batch.

    Attributes:
        broken_images: why an image could not be used, by its index in the dataset.
        overfull_images: how many objects of an image found no row, at most, by its index.
    """

    def __init__(self, loader: TrainingLoader, *, batch_size: int, workers: int, process_index: int, process_count: int, seed: int):
        self._loader = loader
        self._batch_size = batch_size
        self._workers = workers
        self._process_index, self._process_count = process_index, process_count
        self._seed = seed
        self._images_seen = 0
        self._batches: Any = None
        self.broken_images: dict[int, str] = {}
        self.overfull_images: dict[int, int] = {}

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        element = self._next_element()
        self._images_seen += self._batch_size
        self._note(element["broken"], element["left_out"])
        arrays = element["arrays"]
        if self._workers:
            # The memory shared with the worker goes with these arrays, and devices may keep them.
            arrays = jax.tree.map(np.array, arrays)
        return Batch(**{**arrays, "targets": Targets(**arrays["targets"])})

    def _next_element(self) -> Any:
        """The next batch.

        Worker processes that died, for instance for want of memory, are started again at the same
        place.
        """
        for _ in range(WORKER_RESTARTS):
            try:
                return self._first_element() if self._batches is None else next(self._batches)
            except RuntimeError as error:
                # What Grain says of a process that ended by a signal.
                if "terminated unexpectedly" not in str(error):
                    raise
                reason = str(error).split(". ")[0]
                logger.warning("%s; the worker processes of the data start again at the same batch.", reason)
                self.close()
        raise DataError(
            f"The worker processes of the data ended {WORKER_RESTARTS} times in a row ({reason}), "
            f"perhaps for want of memory; try fewer of them than data.workers = {self._workers}."
        )

    def _first_element(self) -> Any:
        self._batches = iter(self._pipeline())
        return first_element(self._batches) if self._workers else next(self._batches)

    def get_state(self) -> dict[str, int]:
        """Where the stream is: the images that all processes together have been given."""
        return {"images_seen": self._images_seen, "dataset_size": len(self._loader.dataset)}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to where `get_state` was called; workers and processes may be others by now.

        With another batch size, a run with one size of input goes on with the next image; a run with
        several goes on at about the same place.
        """
        if state["dataset_size"] != len(self._loader.dataset):
            logger.warning(
                "The training set has %d images and had %d when this run was saved; their order is another one from here on.",
                len(self._loader.dataset),
                state["dataset_size"],
            )
        self.close()
        self._images_seen = int(state["images_seen"])

    def close(self) -> None:
        """Ends the worker processes; the next batch would start them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def __del__(self) -> None:
        # Processes that outlive their iterator would leave shared memory behind.
        self.close()

    def _pipeline(self) -> grain.IterDataset:
        # Grain asks absl's flags for its debug mode, here and in its processes.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = self._slots().map(self._loader)
        if self._workers == 0:
            return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD))
        # One thread a worker is enough, and Grain keeps the order of batches over all workers.
        in_worker = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=BATCHES_AHEAD)
        return in_worker.mp_prefetch(options, worker_init_fn=start_worker)

    def _slots(self) -> grain.MapDataset:
        """The (image, seed) pairs of each batch that is still to come, this process's part."""
        local_size = self._batch_size // self._process_count
        groups = self._loader.groups
        if len(groups.members) == 1:
            stream = shuffled_slots(len(self._loader.dataset), self._seed)
            local_batches = stream[self._images_seen :].batch(local_size, batch_fn=np.stack)
            return local_batches[self._process_index :: self._process_count]
        part = slice(self._process_index * local_size, (self._process_index + 1) * local_size)
        return InputStreams(groups.members, self._seed).batches(self._batch_size, part)[self._images_seen // self._batch_size :]

    def _note(self, broken: list[tuple[int, str]], left_out: list[tuple[int, int]]) -> None:
        for index, message in broken:
            if index not in self.broken_images and len(self.broken_images) < LOGGED_IMAGES:
                logger.warning("Image %d is replaced by another one: %s", index, message)
            self.broken_images[index] = message
        for index, surplus in left_out:
            if index not in self.overfull_images and len(self.overfull_images) < LOGGED_IMAGES:
                logger.warning(
                    "%s has %d objects more than data.max_objects = %d; the smallest are left out.",
                    self._loader.dataset.file_names[index],
                    surplus,
                    self._loader.max_objects,
                )
            self.overfull_images[index] = max(surplus, self.overfull_images.get(index, 0))


def training_iterator(
    config: Config,
    spec: InputSpec,
    *,
    process_index: int = 0,
    process_count: int = 1,
    seed: int = 0,
    dataset: InstanceDataset | None = None,
) -> TrainingIterator:
    """The endless stream of training batches of one process.

    With `config.data.workers` above 0, processes are spawned at the first batch: the script that
    asks for it needs `if __name__ == "__main__":`, for they import it again.

    Args:
        config: says which data, which augmentation, how many workers.
        spec: the sizes the detector wants.
        process_index, process_count: of `jax.distributed`; each gets `config.train.batch_size //
            process_count` images a batch.
        seed: of order and augmentation; equal on all processes.
        dataset: the training images, where they are open already; None: the config's.

    Raises:
        DataError: the data are missing or cannot be used. Single broken images are replaced,
            counted and told in the log.
        ValueError: the batch size is no multiple of the number of processes.
    """
    if config.train.batch_size % process_count:
        raise ValueError(
            f"config.train.batch_size = {config.train.batch_size} is no multiple of the {process_count} processes; "
            "it must be, for each takes an equal part."
        )
    return TrainingIterator(
        TrainingLoader(dataset or open_dataset(config, "train"), spec, config.data.augment, config.data.max_objects),
        batch_size=config.train.batch_size,
        workers=config.data.workers,
        process_index=process_index,
        process_count=process_count,
        seed=seed,
    )
