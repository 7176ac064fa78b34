"""How one project's files name and lay out what our models hold: the rules that every table of names comes with."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxseg.config import YolactConfig

# Our leaf, with the collection it lives in, beside PyTorch's.
_TORCH_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """A kind of file.

    Attributes:
        title: what messages call it.
        modules: pairs of our module path and theirs, for every module that holds parameters; None where names and layouts are
            ours. Theirs are PyTorch's otherwise: `weight`, `bias`, `running_mean`, `running_var`, kernels `[out, in, h, w]`.
            Stems take RGB.
        part: of our variables; "" is all of them, "backbone" those under it.
        optional: our modules that a file need not have; they start fresh then.
        unneeded: entries of files that no model here has.
        renamed: older names, as a pattern, and what they are called now.
    """

    title: str
    modules: Callable[[YolactConfig], Iterator[tuple[str, str]]] | None
    part: str = ""
    optional: tuple[str, ...] = ()
    unneeded: re.Pattern[str] | None = None
    renamed: tuple[tuple[re.Pattern[str], str], ...] = ()

    def names(self, config: YolactConfig, paths: Iterable[str]) -> dict[str, str]:
        """Their name of each of our paths (`params/head/box/kernel`), as far as such a file has it."""
        if self.modules is None:
            return {path: path for path in paths}
        theirs = dict(self.modules(config))
        names = {}
        for path in paths:
            collection, *module, leaf = path.split("/")
            if name := theirs.get("/".join(module)):
                names[path] = f"{name}.{_TORCH_LEAVES[collection, leaf]}"
        return names

    def current_name(self, name: str) -> str:
        """What an entry is called today."""
        for pattern, now in self.renamed:
            name = pattern.sub(now, name)
        return name

    def needs(self, name: str) -> bool:
        """False for entries that are known to be superfluous."""
        return self.unneeded is None or not self.unneeded.search(name)

    def to_ours(self, path: str, value: np.ndarray) -> np.ndarray:
        """A view of an entry in our layout."""
        return value.transpose(2, 3, 1, 0) if self._turns(path, value.ndim) else value

    def to_theirs(self, path: str, value: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`."""
        return value.transpose(3, 2, 0, 1) if self._turns(path, value.ndim) else value

    def their_shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a parameter of ours has in such a file."""
        return self.to_theirs(path, np.broadcast_to(np.float32(0), shape)).shape

    def _turns(self, path: str, rank: int) -> bool:
        return self.modules is not None and path.endswith("/kernel") and rank == 4
