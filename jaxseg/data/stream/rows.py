"""The rows of a batch, and their combination into a batch."""

import dataclasses

import jax
import numpy as np
from numpy import ndarray

from jaxseg.structures import Batch, Targets


@dataclasses.dataclass
class Row:
    """One picture of a batch.

    Attributes:
        image: the network's input, `[H, W, 3]`.
        image_size: the height and width of the picture within the input.
        index: the picture's index in its dataset; -1 for padding.
        targets: the ground truth of the picture.
    """

    image: ndarray
    image_size: tuple[int, int]
    index: int
    targets: Targets


def collate(rows: list[Row]) -> Batch:
    """Stacks rows whose inputs have the same size into a batch."""
    indices = np.array([row.index for row in rows], np.int32)
    return Batch(
        images=np.stack([row.image for row in rows]),
        image_sizes=np.array([row.image_size for row in rows], np.int32),
        indices=indices,
        valid=indices >= 0,
        targets=jax.tree.map(lambda *leaves: np.stack(leaves), *(row.targets for row in rows)),
    )
