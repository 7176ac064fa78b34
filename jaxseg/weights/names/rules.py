"""The name table, which says how one kind of file names and lays out a detector's variables."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxseg.config import ModelConfig
from jaxseg.weights.names.layouts import CONVOLUTION, DENSE, TRANSPOSED_CONVOLUTION, Layout

# The suffix of a module's name in PyTorch, by our collection and the name of the variable in it.
TORCH_LEAVES = {
    ("params", "kernel"): ".weight",
    ("params", "scale"): ".weight",
    ("params", "bias"): ".bias",
    ("batch_stats", "mean"): ".running_mean",
    ("batch_stats", "var"): ".running_var",
}
# The statistics of a batch norm that is only a scale and a bias.
IDENTITY_STATISTICS = {"mean": 0.0, "var": 1.0}


@dataclasses.dataclass(frozen=True)
class NameTable:
    """The names and layouts of one kind of file.

    Attributes:
        title: the name of this kind of file in messages.
        models: the class of configurations whose detectors such a file can hold.
        modules: for such a configuration, pairs of our module path and theirs, for every module
            with parameters. It may yield modules that the model does not have. None means that
            names and layouts are ours.
        leaves: the suffixes of a module's name, by our collection and the name of the variable.
        layouts: for such a configuration, the layouts of parameters or whole modules that are
            arranged differently, by our path without its collection. Kernels are transposed in
            addition: theirs are `[out, in, h, w]`, `[out, in]`, and `[in, out, h, w]` in
            transposed convolutions.
        part: the part of our variables that the file holds; "" is all of them, and "backbone" is
            the ResNet or Darknet.
        optional: our modules that may be missing; they are initialized instead.
        folds_statistics: whether batch norms may consist only of a scale and a bias.
        zeros: a pattern of our variables that are 0 if the file has no entry for them.
        unneeded: a pattern of entries that none of our models has.
        renamed: patterns of older names, with the current names.
        agreements: values of a model's configuration, by their dotted keys, that the weights were
            trained with and without which they do not work.
        counts_batches: whether batch norms count their batches.
    """

    title: str
    models: type[ModelConfig]
    modules: Callable[[Any], Iterator[tuple[str, str]]] | None
    leaves: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=lambda: TORCH_LEAVES)
    layouts: Callable[[Any], Mapping[str, Layout]] | None = None
    part: str = ""
    optional: tuple[str, ...] = ()
    folds_statistics: bool = False
    zeros: re.Pattern[str] | None = None
    unneeded: re.Pattern[str] | None = None
    renamed: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = ()
    agreements: Mapping[str, object] = dataclasses.field(default_factory=dict)
    counts_batches: bool = False

    def names(self, config: ModelConfig, paths: Iterable[str]) -> dict[str, str]:
        """Returns their name for each of our paths that such a file has.

        Args:
            config: the model's configuration.
            paths: our paths, for example `params/head/box/kernel`.
        """
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
        """Returns the current name of an entry that may have an older one."""
        for pattern, now in self.renamed:
            name = pattern.sub(now, name)
        return name

    def needs(self, name: str) -> bool:
        """Whether an entry has to be used, unless it is known to be superfluous."""
        return self.unneeded is None or not self.unneeded.search(name)

    def default(self, path: str) -> float | None:
        """Returns the value of a variable that a file has no entry for, or None if it needs one."""
        if self.zeros is not None and self.zeros.search(path):
            return 0.0
        return IDENTITY_STATISTICS.get(_parts(path)[2]) if self.folds_statistics else None

    def describes(self, config: ModelConfig) -> bool:
        """Whether such a file can hold this kind of detector, whatever its conventions."""
        return isinstance(config, self.models)

    def disagreements(self, config: ModelConfig) -> list[str]:
        """Lists in words the values in which a configuration differs from that of the weights."""
        ours = {key: functools.reduce(getattr, key.split("."), config) for key in self.agreements}
        pairs = [(key, value, ours[key]) for key, value in self.agreements.items()]
        return [f"model.{key} is {value!r} there and {own!r} here" for key, value, own in pairs if value != own]

    def to_ours(self, config: ModelConfig, path: str, value: np.ndarray) -> np.ndarray:
        """Converts an entry to our layout; the result is a view if possible."""
        for layout in self._layouts(config, path, value.ndim):
            value = layout.to_ours(value)
        return value

    def to_theirs(self, config: ModelConfig, path: str, value: np.ndarray) -> np.ndarray:
        """Converts a variable to their layout; rows that `to_ours` drops are filled with zeros."""
        for layout in reversed(self._layouts(config, path, value.ndim)):
            value = layout.to_theirs(value)
        return value

    def their_shape(self, config: ModelConfig, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that one of our variables has in such a file."""
        return self.to_theirs(config, path, np.broadcast_to(np.float32(0), shape)).shape

    def _layouts(self, config: ModelConfig, path: str, rank: int) -> list[Layout]:
        """Returns the layouts to apply in turn, from theirs to ours.

        An entry of a rank that no parameter has is not rearranged; the loader reports its shape.
        """
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
    """Splits a path into its collection, its module and the variable's name."""
    collection, _, rest = path.partition("/")
    module, _, leaf = rest.rpartition("/")
    return collection, module, leaf
