"""The training loop: start-up, steps, logging, evaluations, checkpoints, and resumption."""

import collections
import contextlib
import dataclasses
import functools
import logging
import math
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxseg.config import MAX_STEPS, Config, ConfigError, TrainConfig, show, show_differences
from jaxseg.data.sources.from_config import InstanceDataset, open_dataset, resolve_classes
from jaxseg.data.stream.batch_memory import check_batch_memory
from jaxseg.data.stream.training import training_iterator
from jaxseg.devices import check_batch_size, make_mesh, replicated, to_global
from jaxseg.errors import UserError
from jaxseg.evaluation.coco_metrics import main_metric
from jaxseg.memory import require_memory
from jaxseg.models import build_model, init_variables, trainable
from jaxseg.ops.implementation import require_implementation
from jaxseg.structures import Batch
from jaxseg.training.checkpoint import Checkpoints, check_same_run, save_config
from jaxseg.training.interruption import Agreement, Interrupted, Interruption
from jaxseg.training.metrics import MetricsWriter, MovingAverages, progress_line
from jaxseg.training.optimizer import Tree, autoscaled, in_steps, make_optimizer
from jaxseg.training.run_lock import locked
from jaxseg.training.step import TrainState, create_state, make_train_step
from jaxseg.training.validation import Validation
from jaxseg.weights import load_weights

logger = logging.getLogger(__name__)

# The number of steps between the start of a step on the devices and the reading of its losses. With
# it, the devices never wait for the host.
_LAG = 2


class TrainingError(UserError):
    """Training cannot go on; the message says what to try."""


@dataclasses.dataclass
class _Pending:
    """A step that the devices are computing.

    Attributes:
        step: the number of the step.
        scalars: its losses and other values, on the devices.
        stop: whether the processes have agreed to stop, on the devices.
        indices: the indices of the batch's images in the dataset.
        data_time: the time in seconds that the host waited for the batch.
    """

    step: int
    scalars: dict[str, jax.Array]
    stop: jax.Array
    indices: np.ndarray
    data_time: float


def train(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains a detector, or resumes its training if the run folder holds a run.

    If a run has several processes, all of them call this function. On SIGTERM, Ctrl-C or a closed
    terminal, it saves a checkpoint and returns.

    Args:
        config: the experiment; empty class names are read from the training annotations.
        workdir: the run folder, which all processes share. A second training in it is refused while
            this one lasts.

    Returns:
        Averages over the last 100 steps (`loss/<name>` and so on), and the metrics of the last
        evaluation (`val/mask/AP` and so on), if there was one.

    Raises:
        ConfigError, DataError, WeightsError, CheckpointError, TrainingError: the message is one
            sentence that says what is wrong and what would be right.
    """
    mesh = make_mesh()
    check_batch_size(config.train.batch_size, mesh, "config.train.batch_size")
    require_implementation(config.model.implementation, "config.model.implementation")
    local_batch = config.train.batch_size // jax.process_count()
    check_batch_memory(build_model(config).input_spec, local_batch, config.data.max_objects, "config.train.batch_size")
    dataset = open_dataset(config, "train")
    config = resolve_classes(config, dataset)
    workdir = Path(workdir).absolute()
    changes = check_same_run(workdir, config)
    with locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        return _Run(config, workdir, mesh=mesh, dataset=dataset, changes=changes).train()


class _Run:
    """The state and the parts of one run."""

    def __init__(self, config: Config, workdir: Path, *, mesh: Mesh, dataset: InstanceDataset, changes: list[str]):
        """Opens the parts of a run, and logs what will happen.

        Args:
            config: the experiment.
            workdir: the run folder.
            mesh: all devices.
            dataset: the training images.
            changes: the differences from the run that the folder holds, for the log.
        """
        self.config, self.workdir, self.mesh, self.dataset = config, workdir, mesh, dataset
        validation_set = open_dataset(config, "val") if config.train.evaluate_every else None

        # The schedule has the rates and steps for this batch size.
        self.schedule = in_steps(autoscaled(config.train), len(self.dataset))
        if self.schedule.steps > MAX_STEPS:
            raise ConfigError(
                f"config.train.epochs = {config.train.epochs} are {self.schedule.steps} steps; at most {MAX_STEPS} are possible."
            )
        self.model = build_model(config)
        abstract_params = jax.eval_shape(lambda: init_variables(self.model, config))["params"]
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params))
        what = f"A model of {count:,} parameters, with gradients and momentum,"
        require_memory(3 * 4 * count, what, "make config.model smaller", error=ConfigError)
        self.trained: Tree = trainable(config, abstract_params)
        self.optimizer = make_optimizer(self.schedule, self.trained)
        self.step_function = make_train_step(self.model, self.optimizer, trained=self.trained, train=self.schedule, mesh=self.mesh)
        self.agreement = Agreement(self.mesh)
        self.validation: Validation | None = None
        if validation_set is not None:
            self.validation = Validation(config, self.model, validation_set, mesh=self.mesh, run_folder=workdir)
        self._log_start(abstract_params, validation_set, changes)

        self.iterator = training_iterator(
            config,
            self.model.input_spec,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            seed=config.train.seed,
            dataset=self.dataset,
        )
        self.checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
        self.state = self._restored_or_new_state()
        self.step = int(self.state.step)
        self.first_step = self.step + 1
        # The shapes of images that the step is compiled for, and the last step whose time includes
        # compilation.
        self.shapes: set[tuple[int, ...]] = set()
        self.untimed_until = self.step
        # The time at which the previous step was done; None if something else happened in between.
        self.finished_at: float | None = None
        self.writer = MetricsWriter(workdir, self.step) if jax.process_index() == 0 else None
        if jax.process_index() == 0:
            save_config(workdir, config)
        self.averages = MovingAverages()
        self.pending: collections.deque[_Pending] = collections.deque()
        self.skipped_in_a_row = 0
        self.last_evaluation: dict[str, float] = {}

    def _log_start(self, params: Tree, validation_set: InstanceDataset | None, changes: list[str]) -> None:
        train, schedule = self.config.train, self.schedule
        device = jax.devices()[0]
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
        learning = sum(size for size, learns in zip(sizes, jax.tree.leaves(self.trained), strict=True) if learns)
        if jax.process_index() == 0:
            keys = len(show(self.config).splitlines())
            shown = show_differences(self.config) or "the default configuration"
            logger.info("%s\n(all %d keys are in config.json of the run folder)", shown, keys)
        logger.info("run folder %s", self.workdir)
        logger.info(
            "process %d of %d: %d of %d devices (%s)",
            jax.process_index(),
            jax.process_count(),
            jax.local_device_count(),
            jax.device_count(),
            device.device_kind,
        )
        logger.info("batch of %d images, %d on each device", train.batch_size, train.batch_size // self.mesh.size)
        logger.info("%d training images%s", len(self.dataset), f", {len(validation_set)} validation images" if validation_set else "")
        logger.info("%s parameters, of which %s learn", f"{sum(sizes):,}", f"{learning:,}")
        epochs = f" ({train.epochs} epochs)" if train.epochs else ""
        logger.info("rate %g, %d steps%s, %s; %s", schedule.learning_rate, schedule.steps, epochs, _decays(schedule), _scaling(train))
        for change in changes:
            logger.info("differs from the run saved here: %s", change)

    def _restored_or_new_state(self) -> TrainState:
        copied = replicated(self.mesh)
        fresh_state = functools.partial(create_state, optimizer=self.optimizer, train=self.config.train)
        shapes = jax.eval_shape(fresh_state, jax.eval_shape(lambda: init_variables(self.model, self.config)))
        restored = self.checkpoints.restore(
            jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=copied), shapes)
        )
        if restored is None:
            variables = self._first_variables()
            return jax.jit(fresh_state, out_shardings=copied)(jax.device_put(variables, copied))
        state, data_state = restored
        logger.info("goes on from step %d of %d", int(state.step), self.schedule.steps)
        self.iterator.set_state(data_state)
        return state

    def _first_variables(self) -> dict[str, Tree]:
        if self.config.init.weights:
            logger.info("starts from weights")
            return load_weights(self.config.init.weights, self.config, skip_mismatched=self.config.init.skip_mismatched)
        logger.info("starts from random weights")
        return init_variables(self.model, self.config, self.config.train.seed)

    def train(self) -> dict[str, float]:
        try:
            with Interruption() as interruption:
                self._evaluate_if_due(interruption)
                while self.step < self.schedule.steps and not self._stops_at_once(interruption) and not self._advance(interruption):
                    pass
                self._record_all()
                self._end(interruption)
        finally:
            with contextlib.ExitStack() as ends:
                if self.writer:
                    ends.callback(self.writer.close)
                ends.callback(self.checkpoints.close)
                ends.callback(self.iterator.close)
        return self.averages.means() | self.last_evaluation

    def _end(self, interruption: Interruption) -> None:
        """Saves a checkpoint if the last step has none, and logs how the run ended."""
        if self.step < self.schedule.steps or self._stops_at_once(interruption):
            self._save()
            logger.info("stopped at step %d of %d; the same command goes on from here", self.step, self.schedule.steps)
        else:
            logger.info("trained %d steps", self.step)
        if self.iterator.broken_images:
            logger.warning("%d training images could not be used and were replaced by others", len(self.iterator.broken_images))

    @staticmethod
    def _stops_at_once(interruption: Interruption) -> bool:
        """Whether to stop now, which a single process may do without an agreement."""
        return interruption.wanted and jax.process_count() == 1

    def _advance(self, interruption: Interruption) -> bool:
        """Makes a step and whatever is due after it, and returns whether to stop."""
        started = time.perf_counter()
        try:
            batch = next(self.iterator)
        except Exception:
            # A scheduler that stops a job may already have ended the worker processes of the data.
            if self._stops_at_once(interruption):
                return True
            self._save_before_error()
            raise
        data_time = time.perf_counter() - started
        scalars = self._start_step(batch)
        stop_answer, indices = self.agreement.ask(interruption.wanted), np.asarray(batch.indices)
        self.pending.append(_Pending(self.step, scalars, stop=stop_answer, indices=indices, data_time=data_time))
        stop = self._record(self.pending.popleft(), timed=True) if len(self.pending) > _LAG else False
        if self.step % self.config.train.checkpoint_every == 0 or self.step == self.schedule.steps or self._evaluation_is_due():
            stop |= self._record_all()
            self._save()
            if not stop:
                self._evaluate_if_due(interruption)
        return stop or self._stops_at_once(interruption)

    def _start_step(self, batch: Batch) -> dict[str, jax.Array]:
        """Starts a step on the devices, and logs if it has to be compiled first."""
        self.step += 1
        shape, started = batch.images.shape, time.perf_counter()
        if shape not in self.shapes:
            logger.info("compiling the training step for images of %d x %d; it can take minutes", *shape[1:3])
        self.state, scalars = self.step_function(self.state, to_global(batch, self.mesh))
        if shape not in self.shapes:
            logger.info("compiled in %.0f s", time.perf_counter() - started)
            self.shapes.add(shape)
            # The devices finished the previous steps meanwhile, so their times are unknown.
            self.untimed_until = self.step
        return scalars

    def _save_before_error(self) -> None:
        """Saves a checkpoint before an error of the data ends the run.

        This only happens in a run of one process, because several must save together.
        """
        if jax.process_count() == 1 and self.step >= self.first_step:
            self._record_all()
            self._save()
            logger.info("saved at step %d of %d before the end", self.step, self.schedule.steps)

    def _record_all(self) -> bool:
        stop = False
        while self.pending:
            stop |= self._record(self.pending.popleft(), timed=False)
        self.finished_at = None
        return stop

    def _record(self, pending: _Pending, *, timed: bool) -> bool:
        """Waits for a step, logs its values, and returns whether the processes wanted to stop."""
        values = {name: float(value) for name, value in jax.device_get(pending.scalars).items()}
        if values.pop("skipped"):
            self._log_skipped(pending)
        else:
            self.skipped_in_a_row = 0
        rate = {"learning_rate": values.pop("learning_rate")}
        self.averages.add(values | (self._times(pending) if timed else {}))
        due = pending.step % self.config.train.log_every == 0 or pending.step == self.schedule.steps
        if self.writer and (due or pending.step == self.first_step):
            means = self.averages.means() | rate
            logger.info("%s", progress_line(pending.step, self.schedule.steps, means))
            if due:
                self.writer.write(pending.step, means)
        return bool(pending.stop)

    def _times(self, pending: _Pending) -> dict[str, float]:
        """Returns the time since the previous step was done, and the time of waiting for data.

        Nothing is returned for steps whose time is unknown or includes compilation.
        """
        now = time.perf_counter()
        before, self.finished_at = self.finished_at, now
        if before is None or pending.step <= self.untimed_until:
            return {}
        return {"step_time": now - before, "data_time": pending.data_time}

    def _log_skipped(self, pending: _Pending) -> None:
        self.skipped_in_a_row += 1
        images = ", ".join(f"{self.dataset.image_ids[i]} ({self.dataset.file_names[i]})" for i in pending.indices if i >= 0)
        logger.warning("step %d skipped: a loss or gradient is not finite; image ids of the batch: %s", pending.step, images)
        if self.skipped_in_a_row >= self.config.train.max_skipped_steps:
            raise TrainingError(
                f"Training ended at step {pending.step}: the last {self.skipped_in_a_row} steps had a loss or gradient that is not finite; "
                "try a lower train.learning_rate, a longer train.warmup_steps, train.clip_norm = 10 or model.dtype = float32."
            )

    def _save(self) -> None:
        self.checkpoints.save(self.state, self.iterator.get_state())

    def _evaluation_is_due(self) -> bool:
        every = self.config.train.evaluate_every
        return bool(every) and self.step > 0 and (self.step % every == 0 or self.step >= self.schedule.steps)

    def _evaluate_if_due(self, interruption: Interruption) -> None:
        """Evaluates the checkpoint just saved or restored, unless it was; a signal ends this."""
        if self.validation is None or not self._evaluation_is_due() or self.step in self.checkpoints.average_precision:
            return
        try:
            # Of several processes, none may leave alone, because the others would wait for it.
            with interruption.breaking_off() if jax.process_count() == 1 else contextlib.nullcontext():
                self.last_evaluation, pictures = self.validation(self.step, self.state.evaluation_variables)
        except Interrupted:
            logger.info("the evaluation of step %d is broken off; the next start makes it", self.step)
            return
        if self.writer:
            self.writer.write(self.step, self.last_evaluation)
            for name, picture in pictures.items():
                self.writer.picture(self.step, f"val/{name}", picture)
        self.checkpoints.record_evaluation(self.step, main_metric(self.last_evaluation, "val/"))


def _decays(schedule: TrainConfig) -> str:
    if schedule.schedule == "cosine":
        return "falling along a cosine to 0"
    if not schedule.decay_steps:
        return "constant"
    return f"times {schedule.decay_factor:g} at {', '.join(map(str, schedule.decay_steps))}"


def _scaling(train: TrainConfig) -> str:
    base = train.autoscale_batch_size
    if not base or base == train.batch_size:
        return "as configured"
    steps = "" if train.epochs or not train.autoscale_steps else f" and {train.steps}"
    return f"scaled from {train.learning_rate:g}{steps} for a batch of {train.batch_size} instead of {base}"
