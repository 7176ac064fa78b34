"""The boxes that non-maximum suppression keeps, in a fixed number of rows."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


class Kept(NamedTuple):
    """The kept boxes in descending order of scores.

    Attributes:
        indices: the rows of the boxes in the input.
        classes: the class of each box.
        scores: the score of each box in its class.
        valid: whether the row holds a box; all other rows are at the end.
    """

    indices: Int32[Array, "D"]
    classes: Int32[Array, "D"]
    scores: Float32[Array, "D"]
    valid: Bool[Array, "D"]

    def padded(self, rows: int) -> "Kept":
        """Returns the same boxes in `rows` rows, with zeros in the rows without a box."""
        indices, classes, scores, valid = (jnp.pad(field, (0, rows - field.shape[0])) for field in self)
        return Kept(jnp.where(valid, indices, 0), jnp.where(valid, classes, 0), jnp.where(valid, scores, 0.0), valid)
