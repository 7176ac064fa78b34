"""Weights of other projects, and of our own runs, as our variables."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from jaxseg.config import Config
from jaxseg.models import build_model, init_variables
from jaxseg.weights import names_yolact


class WeightsError(ValueError):
    """Weights that do not fit; the message lists what is missing, what is left over, and which shapes differ."""


# Our leaf, with the collection it lives in, beside PyTorch's.
_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def load_weights(source: str | Path | Mapping[str, Any], config: Config, *, step: str | int = "best") -> dict[str, Any]:
    """Variables for `build_model(config)`.

    Args:
        source: a run folder of ours, or a mapping from dbolya/yolact's parameter names to arrays in PyTorch's layouts
            (convolutions `[out, in, h, w]`). The stem takes RGB, as the original's, which reverses its BGR images first.
        config: of the model to fill.
        step: of a run folder: "best", "latest" or a number.

    Returns:
        `{"params": ..., "batch_stats": ...}`, float32. The semantic head, which inference does not use, may be absent
        from the source and starts fresh then.

    Raises:
        WeightsError: when a parameter is not in the source, an entry of the source has no place, or shapes differ.
    """
    if isinstance(source, Mapping):
        return _from_names(source, config)
    path = Path(source)
    if not path.exists():
        raise WeightsError(f"There are no weights at {path}; give a run folder of train.py.")
    if path.is_dir():
        from jaxseg.training.checkpoint import restore_variables

        return restore_variables(path, config, step)
    raise WeightsError(f"{path} is a file; give the run folder that train.py made (the one that holds checkpoints/).")


def _from_names(source: Mapping[str, Any], config: Config) -> dict[str, Any]:
    model = build_model(config)
    wanted = jax.eval_shape(lambda: init_variables(model, config))
    flat = flax.traverse_util.flatten_dict(wanted, sep="/")
    theirs = dict(names_yolact.modules(config.model))
    left_over = {name for name in source if not names_yolact.UNNEEDED.search(name)}
    filled: dict[str, Any] = {}
    missing: list[str] = []
    problems: list[str] = []
    fresh: Mapping[str, Any] | None = None
    for path, want in flat.items():
        collection, *module, leaf = path.split("/")
        name = f"{theirs['/'.join(module)]}.{_LEAVES[collection, leaf]}"
        if name not in source:
            if module[0] == names_yolact.OPTIONAL:
                fresh = fresh or flax.traverse_util.flatten_dict(init_variables(model, config), sep="/")
                filled[path] = fresh[path]
            else:
                missing.append(name)
            continue
        left_over.discard(name)
        value = np.asarray(source[name], np.float32)
        if leaf == "kernel" and value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        if value.shape != want.shape:
            problems.append(f"{name} has shape {tuple(np.shape(source[name]))}, which gives {value.shape}; the model wants {want.shape}")
            continue
        filled[path] = value
    if missing or left_over or problems:
        raise WeightsError(_explain(config.name, missing, sorted(left_over), problems))
    return flax.traverse_util.unflatten_dict(filled, sep="/")


def _explain(model: str, missing: list[str], left_over: list[str], problems: list[str]) -> str:
    parts = [f"The weights do not fit {model}."]
    if missing:
        near = {name: difflib.get_close_matches(name, left_over, n=1) for name in missing[:10]}
        listed = ", ".join(name + (f" (nearest: {match[0]})" if match else "") for name, match in near.items())
        parts.append(f"Missing ({len(missing)}): {listed}{' ...' if len(missing) > 10 else ''}.")
    if left_over:
        parts.append(f"Without a place ({len(left_over)}): {', '.join(left_over[:10])}{' ...' if len(left_over) > 10 else ''}.")
    if problems:
        parts.append(f"Other shapes ({len(problems)}): {'; '.join(problems[:5])}{' ...' if len(problems) > 5 else ''}.")
    return " ".join(parts)
