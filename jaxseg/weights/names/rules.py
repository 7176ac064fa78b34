"""How one project's files name and lay out what our models hold: the rules that every table of names comes with."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxseg.config import ModelConfig
from jaxseg.weights.names.layouts import CONVOLUTION, DENSE, TRANSPOSED_CONVOLUTION, Layout

# Our leaf, with the collection it lives in, beside what others write behind a module's name.
TORCH_LEAVES = {
    ("params", "kernel"): ".weight",
    ("params", "scale"): ".weight",
    ("params", "bias"): ".bias",
    ("batch_stats", "mean"): ".running_mean",
    ("batch_stats", "var"): ".running_var",
}
# Of a batch norm that is a scale and a bias only.
IDENTITY_STATISTICS = {"mean": 0.0, "var": 1.0}


@dataclasses.dataclass(frozen=True)
class NameTable:
    """A kind of file.

    Attributes:
        title: what messages call it.
        models: the class of configurations whose detectors such a file can hold.
        modules: for such a configuration, pairs of our module path and theirs, for every module that holds parameters, and more where other models have
            some; None where names and layouts are ours.
        leaves: what stands behind a module's name.
        layouts: of parameters that are laid out otherwise, by our path without its collection, whole modules included. Kernels
            are turned besides: theirs are `[out, in, h, w]`, `[out, in]`, and `[in, out, h, w]` in transposed convolutions.
        part: of our variables; "" is all of them, "backbone" the ResNet or Darknet.
        optional: our modules that a file need not have; they start fresh then.
        folds_statistics: batch norms may come as a scale and a bias only.
        unneeded: entries of files that no model here has.
        renamed: older names, as a pattern, and what they are called now.
        agreements: values of a model's configuration, by their dotted keys, that the weights were
            trained with and that they would mean something else without.
        counts_batches: batch norms count their batches.
    """

    title: str
    models: type[ModelConfig]
    modules: Callable[[Any], Iterator[tuple[str, str]]] | None
    leaves: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
    layouts: Callable[[Any], Mapping[str, Layout]] | None = None
    part: str = ""
    optional: tuple[str, ...] = ()
    folds_statistics: bool = False
    unneeded: re.Pattern[str] | None = None
    renamed: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = ()
    agreements: Mapping[str, object] = dataclasses.field(default_factory=dict)
    counts_batches: bool = False

    def names(self, config: ModelConfig, paths: Iterable[str]) -> dict[str, str]:
        """Their name of each of our paths (`params/head/box/kernel`), as far as such a file has it."""
        if self.modules is None:
            return {path: path for path in paths}
        theirs = dict(self.modules(config)) if self.describes(config) else {}
        names = {}
        for path in paths:
            collection, module, leaf = _parts(path)
            if module in theirs:
                names[path] = theirs[module] + self.leaves[collection, leaf]
        return names

    def current_name(self, name: str) -> str:
        """What an entry is called today."""
        for pattern, now in self.renamed:
            name = pattern.sub(now, name)
        return name

    def needs(self, name: str) -> bool:
        """False for entries that are known to be superfluous."""
        return self.unneeded is None or not self.unneeded.search(name)

    def default(self, path: str) -> float | None:
        """What a parameter is where a file has no entry for it; None where it must have one."""
        return IDENTITY_STATISTICS.get(_parts(path)[2]) if self.folds_statistics else None

    def describes(self, config: ModelConfig) -> bool:
        """Whether such a file can hold the weights of this kind of detector, whatever its conventions."""
        return isinstance(config, self.models)

    def disagreements(self, config: ModelConfig) -> list[str]:
        """Where a configuration describes another detector than the weights learned to be, each in a few words."""
        ours = {key: functools.reduce(getattr, key.split("."), config) for key in self.agreements}
        pairs = [(key, value, ours[key]) for key, value in self.agreements.items()]
        return [f"model.{key} is {value!r} there and {own!r} here" for key, value, own in pairs if value != own]

    def to_ours(self, config: ModelConfig, path: str, value: np.ndarray) -> np.ndarray:
        """An entry in our layout; a view of it where that will do."""
        for layout in self._layouts(config, path, value.ndim):
            value = layout.to_ours(value)
        return value

    def to_theirs(self, config: ModelConfig, path: str, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`; what that dropped is zero."""
        for layout in reversed(self._layouts(config, path, value.ndim)):
            value = layout.to_theirs(value)
        return value

    def their_shape(self, config: ModelConfig, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a parameter of ours has in such a file."""
        return self.to_theirs(config, path, np.broadcast_to(np.float32(0), shape)).shape

    def _layouts(self, config: ModelConfig, path: str, rank: int) -> list[Layout]:
        """From theirs to ours. An entry of a rank that no parameter has is left to whoever compares shapes."""
        _, module, leaf = _parts(path)
        special = self.layouts(config) if self.layouts else {}
        found = [special[module]] if rank and module in special else []
        if self.modules is None or leaf != "kernel" or rank not in (2, 4):
            return found
        if f"{module}/{leaf}" in special:
            found.append(special[f"{module}/{leaf}"])
        turned = TRANSPOSED_CONVOLUTION if module.endswith("deconv") else CONVOLUTION
        return [*found, turned if rank == 4 else DENSE]


def _parts(path: str) -> tuple[str, str, str]:
    """Collection, module and leaf."""
    collection, _, rest = path.partition("/")
    module, _, leaf = rest.rpartition("/")
    return collection, module, leaf
