"""Saving and restoring a run: its checkpoints, the AP of their evaluations, and its configuration.

A run folder holds `config.json`, `checkpoints/<step>/` and `evaluations.json` (the AP by step). A
checkpoint has the items `variables`, `ema`, `optimizer` and `data`, of which evaluation needs only
the first two.
"""

import contextlib
import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN, PreservationPolicy

from jaxseg.config import Config, ConfigError, load_config, to_dict
from jaxseg.files import write_text
from jaxseg.memory import in_units
from jaxseg.training.optimizer import Tree
from jaxseg.training.step import TrainState
from jaxseg.weights.formats.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVALUATIONS,
    CheckpointError,
    best_step,
    check_files,
    read_evaluations,
    why,
    write_checksums,
)

logger = logging.getLogger(__name__)

# The keys that may change when a run is resumed, besides `resumable_keys` of the model's
# configuration.
_RESUMABLE_KEYS = ("name", "init.", "train.", "eval.", "data.root", "data.workers", "model.dtype")


class Checkpoints:
    """The checkpoints of a run: the last `keep`, and the one with the best AP.

    The AP is that of masks or, if the detector has none, of boxes. Checkpoints are saved in the
    background and get their final names when they are complete. Every process of the run must call
    each method at the same steps.
    """

    def __init__(self, run_folder: Path, keep: int):
        self._folder = run_folder.absolute()
        self.average_precision = read_evaluations(self._folder)
        arrays, text = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
        self._manager = ocp.CheckpointManager(
            self._folder / CHECKPOINTS,
            # Checkpoints that a killed process left incomplete have temporary names; they are
            # removed.
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LastAndBest(keep, self.average_precision),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
            ),
            item_handlers={"variables": arrays(), "ema": arrays(), "optimizer": arrays(), "data": text()},
        )
        self._saving = -1

    def save(self, state: TrainState, data_state: Any) -> None:
        """Saves a checkpoint of the state's step.

        Args:
            state: the training state.
            data_state: the position of the data iterator, as JSON and the same in all processes.

        Raises:
            CheckpointError: this checkpoint or the previous one cannot be written.
        """
        step = int(state.step)
        self._wait()
        if step in self._manager.all_steps():
            return
        self._saving = step
        items: dict[str, ocp.args.CheckpointArgs] = {
            "variables": ocp.args.StandardSave({"params": state.params, "batch_stats": state.batch_stats}),
            "optimizer": ocp.args.StandardSave({"opt_state": state.opt_state, "step": state.step, "rng": state.rng}),
            "data": ocp.args.JsonSave(data_state),
        }
        if state.ema_params is not None:
            items["ema"] = ocp.args.StandardSave(state.ema_params)
        with self._as_checkpoint_error():
            self._check_space(state)
            self._manager.save(step, args=ocp.args.Composite(**items))

    def _check_space(self, state: TrainState) -> None:
        """Checks the free space in advance, for errors of the writing threads are hard to read."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise OSError(f"there is no space left on the disk: it takes {in_units(needed)}, and {in_units(free)} are free")

    def _add_checksums(self) -> None:
        """Adds the checksums to a checkpoint.

        Orbax calls this in the background when all files are written, before the checkpoint gets
        its final name.
        """
        if jax.process_index() == 0:
            folder = self._folder / CHECKPOINTS
            # On storage that cannot rename, checkpoints have their final names from the beginning.
            for checkpoint in [*folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")] or [folder / str(self._saving)]:
                write_checksums(checkpoint)

    def _wait(self) -> None:
        with self._as_checkpoint_error():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _as_checkpoint_error(self) -> Iterator[None]:
        """Turns any error of saving into a `CheckpointError` of one sentence."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint of step {self._saving} cannot be written to {self._folder / CHECKPOINTS} ({why(error)}); "
                "the same command goes on from the one before, when that is put right."
            ) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, Any] | None:
        """Restores the newest checkpoint that can be read.

        Args:
            abstract: the state's shapes, types and shardings (`jax.ShapeDtypeStruct`).

        Returns:
            The state and the position of the data iterator, or None if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint is that of another model, or none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._restore(step, abstract)
                self._forget_evaluations_after(step)
                return restored
            except CheckpointError:
                raise
            # The storage library under Orbax raises many kinds of exceptions for a truncated file.
            except Exception as error:
                folder = self._folder / CHECKPOINTS / str(step)
                reason = f"{folder} cannot be read ({why(error)})"
                if jax.process_count() > 1 or step == steps[-1]:
                    raise CheckpointError(f"{reason}; move that folder away to go on without it.") from error
                logger.warning("%s; it is renamed to %s.unreadable, and the run goes on from the one before it", reason, step)
                folder.rename(folder.with_name(f"{step}.unreadable"))
                self._manager.reload()
        self._forget_evaluations_after(0)
        return None

    def _forget_evaluations_after(self, step: int) -> None:
        """Forgets the evaluations after a step, because the run will reach those steps again."""
        for later in [evaluated for evaluated in self.average_precision if evaluated > step]:
            del self.average_precision[later]

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, Any]:
        folder = self._folder / CHECKPOINTS / str(step)
        variables = {"params": abstract.params, "batch_stats": abstract.batch_stats}
        optimizer = {"opt_state": abstract.opt_state, "step": abstract.step, "rng": abstract.rng}
        check_files(folder, ("variables", "ema", "optimizer", "data"))
        metadata = self._manager.item_metadata(step)
        _check_shapes(folder, metadata["variables"].tree, variables, "the model of this configuration")
        _check_shapes(
            folder,
            metadata["optimizer"].tree,
            optimizer,
            "the optimizer of this configuration (train.optimizer, and what model.batch_norm trains)",
        )
        items: dict[str, ocp.args.CheckpointArgs] = {
            "variables": ocp.args.StandardRestore(variables),
            "optimizer": ocp.args.StandardRestore(optimizer),
            "data": ocp.args.JsonRestore(),
        }
        saved_average, wanted_average = "ema" in metadata, abstract.ema_params is not None
        if saved_average and wanted_average:
            items["ema"] = ocp.args.StandardRestore(abstract.ema_params)
        elif wanted_average:
            logger.info("the saved run kept no moving average: it starts from the parameters of step %d", step)
        elif saved_average:
            logger.info("train.ema_decay is 0: the saved run's moving average is left behind")
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        average = None
        if wanted_average:
            average = restored["ema"] if saved_average else jax.tree.map(jnp.copy, restored["variables"]["params"])
        return TrainState(**restored["optimizer"], **restored["variables"], ema_params=average), restored["data"]

    def record_evaluation(self, step: int, average_precision: float) -> None:
        """Records the AP of a step, by which the best checkpoint is chosen.

        NaN, which is the AP of images without objects, counts as 0.
        """
        self.average_precision[step] = 0.0 if math.isnan(average_precision) else average_precision
        if jax.process_index() == 0:
            write_text(self._folder / EVALUATIONS, json.dumps(self.average_precision, indent=1))

    def close(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            self._wait()
        finally:
            # After a failed save, this raises the same error again.
            with contextlib.suppress(Exception):
                self._manager.close()


class _LastAndBest(PreservationPolicy):
    """Keeps the last checkpoints and the best of those that were evaluated."""

    def __init__(self, keep: int, average_precision: Mapping[int, float]):
        self._latest, self._average_precision = LatestN(keep), average_precision

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = best_step([info.step for info in checkpoints], self._average_precision)
        latest = self._latest.should_preserve(checkpoints, context=context)
        return [keep or info.step == best for keep, info in zip(latest, checkpoints, strict=True)]


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _check_shapes(folder: Path, saved_tree: Tree, expected_tree: Tree, whose: str) -> None:
    saved, expected = _shapes(saved_tree), _shapes(expected_tree)
    differing = [
        f"{name} is {saved.get(name, 'missing')} and should be {expected.get(name, 'missing')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(f"The checkpoint {folder} does not fit {whose}: {'; '.join(differing[:3])}{more}.")


def check_same_run(run_folder: Path, config: Config) -> list[str]:
    """Compares a configuration with the one that its run folder holds.

    Returns:
        A line `key: old -> new` for each permitted difference, such as those of training, of
        evaluation and of the place of the data.

    Raises:
        ConfigError: the model or the data differ.
    """
    path = run_folder / CONFIG
    if not path.is_file():
        return []
    old, new = _flat(to_dict(load_config(path))), _flat(to_dict(config))
    # `save_config` does not save `init.skip_mismatched`.
    differing = [key for key in new if old.get(key) != new[key] and key != "init.skip_mismatched"]
    resumable = (*_RESUMABLE_KEYS, *(f"model.{key}" for key in config.model.resumable_keys))
    refused = [key for key in differing if not key.startswith(resumable)]
    if refused:
        # Another kind of model has different keys, so the kind is the only difference worth naming.
        refused = ["model.kind"] if "model.kind" in refused else refused
        raise ConfigError(
            f"{run_folder} holds a run with another {' and '.join(refused)}; "
            "use the saved values (config.json there has them), or another --workdir for a new run."
        )
    return [f"{key}: {old[key]} -> {new[key]}" for key in differing]


def save_config(run_folder: Path, config: Config) -> None:
    """Writes config.json, which `jaxseg.load_config` reads.

    `init.skip_mismatched` is saved as false, because it only concerns the weights that this run
    started from.
    """
    config = dataclasses.replace(config, init=dataclasses.replace(config.init, skip_mismatched=False))
    write_text(run_folder / CONFIG, json.dumps(to_dict(config), indent=2) + "\n")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
