"""Loading weights of other projects, or of our own runs, into a detector's variables.

Every parameter must be filled and every entry used; otherwise there is an error.
"""

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from jaxseg.config import Config, ConfigError, load_config
from jaxseg.models import Detector, build_model, init_variables
from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.readers import read_weights
from jaxseg.weights.formats.run_folder import CONFIG
from jaxseg.weights.names.registry import original, recognise
from jaxseg.weights.names.rules import NameTable

logger = logging.getLogger(__name__)

# The number of names of each kind that an error lists.
_LISTED = 10
_SKIP = "With --config.init.skip_mismatched=True, those start from random values, as is usual for other classes."
_WHOLE = "Take the configuration that these weights were trained with; train.py can start from them for other classes."


def load_weights(
    source: str | Path | Mapping[str, Any],
    config: Config,
    *,
    step: str | int = "best",
    skip_mismatched: bool | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Loads the variables of `build_model(config)`.

    Args:
        source: a file (`.pth`, `.pkl`, `.npz`, `.safetensors`), a run folder of train.py, or a
            mapping from names to arrays. Names and layouts are those of the detectors of
            dbolya/yolact, torchvision, detectron2, mmdetection, maskrcnn-benchmark or Detectron; or
            those of torchvision's or MSRA's ResNets or dbolya's Darknet-53, which fill the
            backbone; or our own, such as `params/head/box/kernel`.
        config: the configuration of the model. Variables that the source does not have are drawn
            at random with the seed `config.train.seed`.
        step: the checkpoint of a run folder: "best", "latest" or a number.
        skip_mismatched: whether parameters with another shape in the source are drawn at random
            instead; by default, `config.init.skip_mismatched` decides.
        whole: whether weights of a backbone alone are refused.

    Returns:
        `{"params": ..., "batch_stats": ...}`, float32, on the default device.

    Raises:
        WeightsError: the source cannot be read, was trained with other conventions than those of
            the configuration, lacks a parameter, has an unused entry, or has another shape. Unused
            entries without an effect, such as the counters of batch norms, are permitted; so is the
            lack of the semantic head, which inference does not use.
        CheckpointError: there is no such checkpoint in the run folder.
    """
    named = None if isinstance(source, Mapping) else str(source)
    entries = source if isinstance(source, Mapping) else read_weights(source, step=step)
    if skip_mismatched is None:
        skip_mismatched = config.init.skip_mismatched
    model = build_model(config)
    wanted = _flat(jax.eval_shape(lambda: init_variables(model, config)))
    table = recognise(entries, config.model, wanted)
    if whole and table.part:
        raise WeightsError(
            f"{named or 'The mapping'} holds {table.title}, which is only the {table.part} of a detector; train with it as init.weights."
        )
    if disagreements := table.disagreements(config.model):
        raise WeightsError(_disagreement_message(named, config, table, disagreements))
    entries = {table.current_name(name): value for name, value in entries.items()}
    names = table.names(config.model, wanted)
    found = {path: table.to_ours(config.model, path, _array(entries[name])) for path, name in names.items() if name in entries}
    defaults = {path: table.default(path) for path in names if path not in found}
    found |= {path: np.full(wanted[path].shape, value) for path, value in defaults.items() if value is not None}
    absent = [path for path in names if path not in found and not _module(path).startswith(table.optional)]
    left_over = sorted(name for name in set(entries) - set(names.values()) if table.needs(name))
    mismatched = [path for path, value in found.items() if value.shape != wanted[path].shape]
    if absent or left_over or (mismatched and not skip_mismatched):
        shapes = [
            f"{names[path]}  {np.shape(entries[names[path]])}  {table.their_shape(config.model, path, wanted[path].shape)}"
            for path in mismatched
        ]
        missing = [names[path] for path in absent]
        message = _misfit_message(named, config, table, missing=missing, unused=left_over, shapes=shapes, to_train=not whole)
        raise WeightsError(message)
    fresh = [path for path in wanted if path not in found or path in mismatched]
    # Copies, so that the variables do not keep views of a file that is mapped into memory.
    filled = {path: jax.device_put(np.array(found[path], np.float32, order="C")) for path in wanted if path not in fresh}
    if fresh:
        filled |= jax.jit(lambda: _initial(model, config, fresh))()
    _log_source(named or "the mapping", table, len(filled) - len(fresh), [path for path in fresh if path not in mismatched])
    for path in mismatched:
        logger.warning(
            "skipped %s: %s in the source, %s in the model; it starts from random values",
            names[path],
            found[path].shape,
            wanted[path].shape,
        )
    return flax.traverse_util.unflatten_dict(filled, sep="/")


def load_detector(
    checkpoint: str, config_file: str | None, overrides: Mapping[str, Any], *, step: str = "best"
) -> tuple[Config, dict[str, Any]]:
    """Loads the configuration and the variables that a command line names.

    Args:
        checkpoint: a run folder, or a file of weights.
        config_file: a config file; None reads config.json of the run folder.
        overrides: values of the configuration by dotted keys.
        step: the checkpoint of a run folder: "best", "latest" or a number.

    Raises:
        ConfigError: there is no configuration, or it cannot be used.
        WeightsError, CheckpointError: the weights cannot be read, do not fit the configuration, or
            are those of a backbone alone.
    """
    path = Path(checkpoint) / CONFIG
    if config_file is None and not path.is_file():
        raise ConfigError(f"There is no {path}; give a run folder of train.py, or say --config FILE for weights in a file.")
    config = load_config(config_file or path, overrides)
    # Nothing may be drawn at random here, because it would be taken for trained parameters.
    return config, load_weights(checkpoint, config, step=step, skip_mismatched=False, whole=True)


def _initial(model: Detector, config: Config, paths: Sequence[str]) -> dict[str, Any]:
    """Returns some of the initial variables; under jit, XLA does not compute the others."""
    variables = _flat(init_variables(model, config, config.train.seed))
    return {path: variables[path] for path in paths}


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(variables, sep="/")


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else np.asarray(value)


def _module(path: str) -> str:
    return path.partition("/")[2].rpartition("/")[0]


def _log_source(source: str, table: NameTable, count: int, fresh: Sequence[str]) -> None:
    initialized = f"; initialized at random: {', '.join(_summary(fresh))}" if fresh else ""
    logger.info("%s: %s, %d arrays%s", source, table.title, count, initialized)


def _summary(paths: Iterable[str]) -> list[str]:
    """Returns the first parts of the modules' paths, each of them once."""
    return sorted({_module(path).partition("/")[0] for path in paths})


def _disagreement_message(source: str | None, config: Config, table: NameTable, disagreements: Sequence[str]) -> str:
    described = original(config.model)
    return (
        f"{source or 'The mapping'} holds {table.title}, and {config.name} describes "
        f"{described.title if described else 'another detector'}, which is not equivalent: {'; '.join(disagreements)}; "
        "take a configuration that agrees, or convert the weights with one first (python -m jaxseg.commands.convert)."
    )


def _misfit_message(
    source: str | None,
    config: Config,
    table: NameTable,
    *,
    missing: Sequence[str],
    unused: Sequence[str],
    shapes: Sequence[str],
    to_train: bool,
) -> str:
    def rows(title: str, lines: Sequence[str]) -> list[str]:
        more = [f"  ... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        return [f"{title} ({len(lines)}):", *(f"  {line}" for line in lines[:_LISTED]), *more] if lines else []

    near = {name: difflib.get_close_matches(name, unused, n=1) for name in missing[:_LISTED]}
    width = max(map(len, near), default=0)
    pairs = [f"{name:<{width}}  {near[name][0]}" if near.get(name) else name for name in missing]
    return "\n".join(
        [
            f"The weights{f' in {source}' if source else ''} do not fit {config.name}; they were taken for {table.title}.",
            *rows("Missing in the weights, with the most similar unused name", pairs),
            *rows("Unused by the model", unused),
            *rows("Different shapes, in the weights and in the model", shapes),
            *([_SKIP if to_train else _WHOLE] if shapes else []),
        ]
    )
