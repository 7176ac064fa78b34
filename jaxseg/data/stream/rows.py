"""One row of a batch, and a batch of rows."""

import dataclasses

import jax
import numpy as np
from numpy import ndarray

from jaxseg.structures import Batch, Targets


@dataclasses.dataclass
class Row:
    """A picture as a batch holds it.

    Attributes:
        image: `[H, W, 3]`, the network's input.
        image_size: height and width of the picture within it.
        index: the picture's position in its dataset; -1 for padding.
        targets: its ground truth.
    """

    image: ndarray
    image_size: tuple[int, int]
    index: int
    targets: Targets


def collate(rows: list[Row]) -> Batch:
    """Stacks rows, whose inputs have one size."""
    indices = np.array([row.index for row in rows], np.int32)
    return Batch(
        images=np.stack([row.image for row in rows]),
        image_sizes=np.array([row.image_size for row in rows], np.int32),
        indices=indices,
        valid=indices >= 0,
        targets=jax.tree.map(lambda *leaves: np.stack(leaves), *(row.targets for row in rows)),
    )
