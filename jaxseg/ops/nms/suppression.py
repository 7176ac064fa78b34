"""The rule by which one box suppresses another, and the boxes of a list that are kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.boxes import box_area, intersection_and_union, quotient_reaches, rounded

# The longest list that the kernel of greedy suppression supports. For a longer one, the bits of all
# pairs would need more than 128 MiB.
MOST_BOXES = 32768
# The number of boxes in a block of plain greedy suppression. Smaller blocks need less arithmetic on
# CPUs; larger ones need fewer steps on accelerators, and smaller programs.
BLOCK_SIZE = 512


class Rule(NamedTuple):
    """The rule by which one box suppresses another.

    Attributes:
        iou_threshold: boxes suppress each other if their IoU is larger.
        suppress_equal: whether boxes also suppress each other if their IoU equals the threshold.
        pixel_offset: the number that is added to widths and heights, which is 1 if boxes end in
            their last pixel.
        empty: the IoU of two boxes that both have no area.
    """

    iou_threshold: float
    suppress_equal: bool = False
    pixel_offset: float = 0.0
    empty: float = 0.0

    @property
    def least_iou(self) -> np.float32:
        """The smallest IoU that suppresses."""
        threshold = np.float32(self.iou_threshold)
        return threshold if self.suppress_equal else np.nextafter(threshold, np.float32(np.inf))

    def areas(self, boxes: Float32[Array, "*b n 4"]) -> Float32[Array, "*b n"]:
        """Computes the areas of boxes, rounded as in `intersection_and_union`."""
        return jnp.asarray(rounded(box_area(boxes, self.pixel_offset)))

    def suppresses(self, a: Float32[Array, "*b n 4"], b: Float32[Array, "*b m 4"]) -> Bool[Array, "*b n m"]:
        """Returns which boxes of `a` and of `b` suppress each other."""
        intersection, union = intersection_and_union(a, b, self.pixel_offset)

        def divided(intersection: Array, union: Array) -> Array:
            return intersection / jnp.where(union > 0, union, 1.0) >= self.least_iou

        def compared(intersection: Array, union: Array) -> Array:
            return jnp.asarray(quotient_reaches(intersection, union, self.least_iou))

        # CPUs divide exactly, and are faster with a division.
        reaches = jax.lax.platform_dependent(intersection, union, cpu=divided, default=compared)
        return jnp.where(union > 0, reaches, bool(self.empty >= self.least_iou))


def settle(candidates: Bool[Array, "k"], suppresses: Bool[Array, "k k"]) -> Bool[Array, "k"]:
    """Returns which candidates of a list are kept by greedy suppression.

    In the first iteration all candidates are kept. Each further iteration drops the candidates that
    are suppressed by a better one which the iteration before kept. After n iterations the first n
    results are final, and all of them are final if nothing changes. There are as many iterations as
    the longest chain of suppressions has boxes, which is usually a small number.

    Args:
        candidates: the boxes that can be kept, in descending order of scores.
        suppresses: which of them suppress each other.
    """
    suppresses = jnp.triu(suppresses, 1)

    def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays = candidates & ~(state[0][:, None] & suppresses).any(0)
        return stays, (stays != state[0]).any()

    return jax.lax.while_loop(lambda state: state[1], turn, (candidates, jnp.array(True)))[0]


def too_many_boxes(count: int) -> str | None:
    """Returns why the kernel of greedy suppression does not support so many boxes, or None."""
    if count > MOST_BOXES:
        return f"{count} boxes of one list, and {MOST_BOXES} are the most"
    return None
