"""Whole training runs that take seconds: a detector of one convolution and synthetic data.

As a script it trains in its own process, for tests that kill a process or need several:
`python tiny_training.py RUN_FOLDER key=value ...`, with the keys of the configuration, `delay` and
`interrupted` of `TinyData`, and `timeout` (seconds to wait for other processes).
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxseg.config import Config, override
from jaxseg.models import YolactConfig
from jaxseg.structures import Batch, Detections, InputSpec, Targets
from jaxseg.training import loop
from jaxseg.weights.formats.run_folder import read_run

SIZE = 16
CONFIG = override(
    Config(model=YolactConfig()),
    {
        "name": "tiny",
        "model.num_classes": 2,
        "data.class_names": ("square", "disc"),
        "data.category_ids": (1, 2),
        "train.batch_size": 8,
        "train.steps": 12,
        "train.learning_rate": 0.05,
        "train.decay_steps": (8,),
        "train.warmup_steps": 3,
        "train.warmup_learning_rate": 0.01,
        "train.checkpoint_every": 4,
        "train.log_every": 1,
    },
)


def noise(_, shape: tuple[int, ...], dtype=jnp.float32):
    """Makes the first weights of a layer with NumPy, because JAX compiles random numbers for seconds."""
    # Of the seeds 0 to 9, only 0 exceeds the tolerance of `test_multiprocess.py`.
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape) / np.sqrt(np.prod(shape[:-1])), dtype)


class TinyDetector(nn.Module):
    """A detector that learns the mean height and width of the boxes from the mean of the image.

    The random numbers `sampling` affect its losses.
    """

    outputs: int = 4
    input_spec = InputSpec(input_sizes=((SIZE, SIZE),), mask_size=(8, 8), semantic_size=(8, 8), num_classes=2)

    def setup(self):
        self.convolution = nn.Conv(4, (3, 3), kernel_init=noise)
        self.bn = nn.BatchNorm(momentum=0.9)
        self.head = nn.Dense(self.outputs, kernel_init=noise)

    def __call__(self, images, train=False):
        features = self.bn(self.convolution(images.astype(jnp.float32) / 255), use_running_average=not train)
        return self.head(nn.relu(features).mean((1, 2)))

    def losses(self, batch: Batch, *, train: bool):
        predicted = self(batch.images, train=train)
        noise = jax.random.uniform(self.make_rng("sampling"), (len(predicted), 4), minval=0.9)
        # A crowd marks an image that makes the loss NaN.
        poison = jnp.where(batch.targets.crowd, jnp.nan, 0.0).sum()
        box = jnp.square(predicted - noise * batch.targets.boxes[:, 0] / SIZE).mean()
        return {"box": box + poison, "class": jnp.abs(predicted).mean()}

    def detect(self, images, image_sizes):
        boxes = jnp.abs(self(images))[:, None] * SIZE
        shape = boxes.shape[:2]
        return Detections(
            boxes=boxes,
            scores=jnp.ones(shape),
            classes=jnp.zeros(shape, jnp.int32),
            valid=jnp.ones(shape, bool),
            masks=jnp.ones((*shape, 8, 8)),
        )


def tiny_batch(indices: np.ndarray, seed: int = 0, poisoned: bool = False, portrait: bool = False) -> Batch:
    """Makes a batch of noise images that are brighter if their boxes are larger.

    A poisoned batch makes the loss NaN, and a portrait is twice as high.
    """
    images, boxes = [], []
    for index in indices:
        rng = np.random.default_rng((seed, int(index)))
        box = rng.uniform(1, SIZE, 4).astype(np.float32)
        images.append(np.clip(rng.integers(0, 100, (SIZE * (1 + portrait), SIZE, 3)) + box.mean() * 10, 0, 255).astype(np.uint8))
        boxes.append(box[None])
    count = len(indices)
    return Batch(
        images=np.stack(images),
        image_sizes=np.full((count, 2), images[0].shape[:2], np.int32),
        indices=np.asarray(indices, np.int32),
        valid=np.ones(count, bool),
        targets=Targets(
            boxes=np.stack(boxes),
            classes=np.zeros((count, 1), np.int32),
            valid=np.ones((count, 1), bool),
            crowd=np.full((count, 1), poisoned),
            masks=np.zeros((count, 1, 8, 1), np.uint8),
            semantic=np.zeros((count, 2, 8, 1), np.uint8),
        ),
    )


@dataclasses.dataclass
class TinyData:
    """A dataset that is also its own training iterator.

    Attributes:
        poisoned: the steps (from 0) whose batch contains an image that makes the loss NaN.
        portraits: the steps (from 0) whose batch has another shape.
        delay: the seconds that a batch takes.
        interrupted: the step (from 0) before whose batch the process sends itself SIGTERM.
        lost: whether there are no more batches after the signal, as if a scheduler had also stopped
            the worker processes.
    """

    poisoned: tuple[int, ...] = ()
    portraits: tuple[int, ...] = ()
    delay: float = 0.0
    interrupted: int = -1
    lost: bool = False
    images: int = 40
    position: int = 0
    class_names = CONFIG.data.class_names

    def __post_init__(self):
        self.image_ids = [1000 + i for i in range(self.images)]
        self.file_names = [f"{i}.jpg" for i in self.image_ids]
        self.broken_images = {}

    def __len__(self):
        return self.images

    def iterator(self, config: Config, spec: InputSpec, *, process_index: int, process_count: int, seed: int, dataset) -> Iterator[Batch]:
        self._rows = np.array_split(np.arange(config.train.batch_size), process_count)[process_index]
        self._batch_size, self._seed = config.train.batch_size, seed
        return self

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        time.sleep(self.delay)
        if self.position == self.interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            if self.lost:
                raise RuntimeError("a worker process is gone")
        indices = (self.position * self._batch_size + self._rows) % self.images
        options = {"poisoned": self.position in self.poisoned, "portrait": self.position in self.portraits}
        self.position += 1
        return tiny_batch(indices, self._seed, **options)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def close(self):
        pass


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init_tiny(model, config, seed=0):
    return dict(model.init(jax.random.key(seed), jnp.zeros((1, SIZE, SIZE, 3), jnp.uint8)))


def trainable_tiny(config, params):
    return jax.tree.map(lambda _: True, params)


@contextlib.contextmanager
def programs_kept_in(folder: Path) -> Iterator[None]:
    """Keeps compiled programs in a folder, so that the runs of a test file compile each one once."""

    def use(options: dict) -> None:
        for name, value in options.items():
            jax.config.update(name, value)
        # The settings take effect from the next program on.
        compilation_cache.reset_cache()

    options = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in options}
    use(options)
    try:
        yield
    finally:
        use(before)


@contextlib.contextmanager
def tiny_parts(data: TinyData):
    """Makes `train` use the tiny detector and `data` while the context is active."""
    parts = {
        "build_model": lambda config: TinyDetector(),
        "init_variables": init_tiny,
        "trainable": trainable_tiny,
        "open_dataset": lambda config, split: data,
        "resolve_classes": lambda config, dataset: config,
        "training_iterator": data.iterator,
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in parts.items():
            stack.enter_context(mock.patch.object(loop, name, replacement))
        yield


def train_tiny(folder: Path, overrides: dict | None = None, **data) -> dict[str, float]:
    """Runs `train` with the tiny detector and data."""
    with tiny_parts(TinyData(**data)):
        return loop.train(override(CONFIG, overrides or {}), folder)


def params_of(folder: Path, step="latest") -> dict[str, np.ndarray]:
    """Returns every variable of a checkpoint by its name."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(read_run(folder, step))}


def records(folder: Path) -> list[dict]:
    """Returns the metrics that a run wrote, with one entry per step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_in_own_process(folder: Path, *settings: str, **environment: str) -> subprocess.Popen:
    """Starts this file as a script, see above; its output is in `stdout`."""
    command = [sys.executable, __file__, str(folder), *settings]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    """Waits until the process has logged a step."""
    for line in process.stdout:
        if line.strip().startswith(f"{step}/"):
            return
    raise AssertionError("the run ended before its time")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    from jaxseg.devices import initialize_distributed

    settings = dict(argument.split("=") for argument in sys.argv[2:])
    tiny = {name: float(settings.pop(name)) for name in ("delay", "interrupted") if name in settings}
    initialize_distributed(timeout=int(settings.pop("timeout", 60)))
    train_tiny(Path(sys.argv[1]), settings, **tiny)
