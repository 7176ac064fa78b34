"""The endless stream of training batches, which is shuffled, seeded and resumable.

The stream is a sequence of (image, seed) pairs that depends on nothing but the seed of the run. All
other settings only distribute the work: worker processes make whole batches in turn, and process
`p` of `n` makes the `p`-th contiguous part of each global batch. So neither the number of processes
nor an interruption changes the images that the run sees.

If the network's input has several sizes (see `jaxseg.data.stream.input_groups`), each batch has one
of them, which is the same on all processes.
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

# The number of other images to try in place of a broken one before an error is raised.
REPLACEMENT_TRIES = 100
# The number of log lines for each kind of problem with images; further problems are only counted.
LOGGED_IMAGES = 20
# The number of batches that a worker process, or the thread in its place, prepares in advance.
BATCHES_AHEAD = 2
# The number of times that worker processes may die in succession without a batch in between.
WORKER_RESTARTS = 3


@dataclasses.dataclass(frozen=True)
class TrainingLoader:
    """Makes a training batch from its (image, seed) pairs; it is sent to the worker processes."""

    dataset: InstanceDataset
    spec: InputSpec
    augment: AugmentConfig
    max_objects: int

    @functools.cached_property
    def rule(self) -> ViewRule:
        """The rule that turns pictures into the detector's inputs."""
        return view_rule(self.spec)

    @functools.cached_property
    def groups(self) -> InputGroups:
        """The images, grouped by the size of their input."""
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
        # Plain dicts are used because Grain shares the memory of their arrays between processes.
        arrays = {**vars(batch), "targets": vars(batch.targets)}
        return {"arrays": arrays, "broken": broken, "left_out": left_out}

    def _read(self, index: int, rng: np.random.Generator, broken: list[tuple[int, str]]) -> Sample:
        """Reads the image or, if it is broken, another one of its group, which the seed selects."""
        for _ in range(REPLACEMENT_TRIES):
            try:
                return self.dataset[index]
            except DataError as error:
                broken.append((index, str(error)))
                alike = self.groups.alike(index)
                index = int(alike[rng.integers(len(alike))])
        raise DataError(f"None of {REPLACEMENT_TRIES} images in a row can be used; the last one: {broken[-1][1]}")

    def _row(self, sample: Sample, rng: np.random.Generator) -> tuple[Row, int]:
        """Returns the augmented picture with its targets, and how many objects have no row."""
        view = self.rule.draw(rng, sample.picture_size, boxes=sample.boxes, crowd=sample.crowd, augment=self.augment)
        targets = to_targets(sample, view, self.spec, self.max_objects)
        surplus = int(view.keeps(sample.boxes).sum()) - int(targets.valid.sum())
        return Row(view.training_image(sample.image), view.image_size, sample.index, targets), surplus


class TrainingIterator:
    """The endless stream of batches of one process.

    `get_state` and `set_state` resume it exactly, at any batch.

    Attributes:
        broken_images: the reason why an image could not be used, by its index in the dataset.
        overfull_images: the largest number of objects of an image for which there was no row, by
            the image's index.
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
            # Shared memory is freed together with these arrays, but devices may still use them.
            arrays = jax.tree.map(np.array, arrays)
        return Batch(**{**arrays, "targets": Targets(**arrays["targets"])})

    def _next_element(self) -> Any:
        """Returns the next batch.

        If worker processes have died, for instance because memory ran out, they are started again
        at the same position.
        """
        for _ in range(WORKER_RESTARTS):
            try:
                return self._first_element() if self._batches is None else next(self._batches)
            except RuntimeError as error:
                # This is Grain's message for a process that was ended by a signal.
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
        """Returns the position: the number of images that all processes together have received."""
        return {"images_seen": self._images_seen, "dataset_size": len(self._loader.dataset)}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the position of `get_state`; the number of workers and processes may differ.

        With another batch size, a run with one size of input continues with the next image, and a
        run with several sizes continues at approximately the same position.
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
        """Ends the worker processes; a request for the next batch would start them again."""
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
        # One thread per worker suffices, and Grain keeps the order of batches over all workers.
        in_worker = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=BATCHES_AHEAD)
        return in_worker.mp_prefetch(options, worker_init_fn=start_worker)

    def _slots(self) -> grain.MapDataset:
        """Returns this process's (image, seed) pairs of each batch that follows."""
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
    """Makes the endless stream of training batches of one process.

    If `config.data.workers` is above 0, processes are spawned at the first batch. They import the
    main script again, so the script needs `if __name__ == "__main__":`.

    Args:
        config: the configuration, which names the data, the augmentation and the number of workers.
        spec: the input that the detector requires.
        process_index, process_count: the index and number of processes of `jax.distributed`; each
            process gets `config.train.batch_size // process_count` images of a batch.
        seed: the seed of the order and of the augmentation; it must be equal on all processes.
        dataset: the training images if they are already open; None opens those of `config`.

    Raises:
        DataError: the data are missing or cannot be used. Single broken images are replaced,
            counted and reported in the log.
        ValueError: the batch size is not a multiple of the number of processes.
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
