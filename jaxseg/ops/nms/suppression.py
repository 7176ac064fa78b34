"""When one box suppresses another, and which boxes of a list stay."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from jaxseg.ops.boxes import box_area, intersection_and_union, quotient_reaches, rounded

# The longest list that the kernel of greedy suppression takes: of a longer one, the bits of all
# pairs would need more than 128 MiB.
MOST_BOXES = 32768
# The number of boxes that plain greedy suppression settles at once. Smaller blocks compute less on
# CPUs; larger ones need fewer steps on accelerators, and smaller programs.
BLOCK_SIZE = 512


class Rule(NamedTuple):
    """When one box suppresses another.

    Attributes:
        iou_threshold: boxes suppress each other when they overlap by more than this.
        suppress_equal: whether boxes that overlap by exactly the threshold suppress each other,
            too.
        pixel_offset: is added to widths and heights; 1 counts pixels inclusively.
        empty: the overlap of two boxes that both have no area.
    """

    iou_threshold: float
    suppress_equal: bool = False
    pixel_offset: float = 0.0
    empty: float = 0.0

    @property
    def least_iou(self) -> np.float32:
        """The smallest overlap that suppresses."""
        threshold = np.float32(self.iou_threshold)
        return threshold if self.suppress_equal else np.nextafter(threshold, np.float32(np.inf))

    def areas(self, boxes: Float32[Array, "*b n 4"]) -> Float32[Array, "*b n"]:
        """The areas of boxes, rounded as `intersection_and_union` rounds them."""
        return jnp.asarray(rounded(box_area(boxes, self.pixel_offset)))

    def suppresses(self, a: Float32[Array, "*b n 4"], b: Float32[Array, "*b m 4"]) -> Bool[Array, "*b n m"]:
        """Which boxes of `a` and of `b` suppress each other."""
        intersection, union = intersection_and_union(a, b, self.pixel_offset)

        def divided(intersection: Array, union: Array) -> Array:
            return intersection / jnp.where(union > 0, union, 1.0) >= self.least_iou

        def compared(intersection: Array, union: Array) -> Array:
            return jnp.asarray(quotient_reaches(intersection, union, self.least_iou))

        # CPUs divide exactly, and in less time.
        reaches = jax.lax.platform_dependent(intersection, union, cpu=divided, default=compared)
        return jnp.where(union > 0, reaches, bool(self.empty >= self.least_iou))


def settle(candidates: Bool[Array, "k"], suppresses: Bool[Array, "k k"]) -> Bool[Array, "k"]:
    """Which candidates of a list stay when each one goes that a better one which stays suppresses.

    All candidates stay at first, and those go that a better one suppresses which stays so far; then
    the same again. After n turns the first n answers are final, and all of them once nothing
    changes. There are as many turns as the longest chain of suppressions has boxes, which is mostly
    few.

    Args:
        candidates: the boxes that may stay, the best first.
        suppresses: which of them suppress each other.
    """
    suppresses = jnp.triu(suppresses, 1)

    def turn(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays = candidates & ~(state[0][:, None] & suppresses).any(0)
        return stays, (stays != state[0]).any()

    return jax.lax.while_loop(lambda state: state[1], turn, (candidates, jnp.array(True)))[0]


def too_many_boxes(count: int) -> str | None:
    """Why the kernel of greedy suppression cannot take so many boxes; None where it can."""
    if count > MOST_BOXES:
        return f"{count} boxes of one list, and {MOST_BOXES} are the most"
    return None
