"""The boxes that stay after suppression, as rows of a fixed number."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


class Kept(NamedTuple):
    """The boxes that stay, the best score first.

    Attributes:
        indices: the rows of the input that the boxes come from.
        classes: the class of each box.
        scores: the score of each box in its class.
        valid: whether the row holds a box; the rows that do not are at the end.
    """

    indices: Int32[Array, "D"]
    classes: Int32[Array, "D"]
    scores: Float32[Array, "D"]
    valid: Bool[Array, "D"]

    def padded(self, rows: int) -> "Kept":
        """The same boxes in as many rows, with zeros in the rows that hold none."""
        indices, classes, scores, valid = (jnp.pad(field, (0, rows - field.shape[0])) for field in self)
        return Kept(jnp.where(valid, indices, 0), jnp.where(valid, classes, 0), jnp.where(valid, scores, 0.0), valid)
