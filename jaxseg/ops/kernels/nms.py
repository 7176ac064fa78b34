"""Non-maximum suppression on NVIDIA GPUs: Pallas kernels for Mosaic GPU.

A program is one group of 128 threads, and each thread has a box. Overlaps are float32 in the order of operations of
`ops.boxes.pairwise_iou`, each product and the quotient rounded, so that every comparison has the plain path's answer.
"""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

# Boxes of a program, one for each thread.
TILE = 128
# Rows that a program of Fast NMS compares its boxes with: fewer, and there are more programs to fill the GPU with.
FAST_ROWS = 64
# Rows compared without a jump between them, so that they wait for memory together.
UNROLL = 4
PARAMETERS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)


class Rule(NamedTuple):
    """When one box suppresses another.

    Attributes:
        iou_threshold: overlaps above it do.
        suppress_equal: overlaps at it do, too.
        pixel_offset: added to widths and heights.
        empty: the overlap of two boxes without any area.
    """

    iou_threshold: float
    suppress_equal: bool = False
    pixel_offset: float = 0.0
    empty: float = 0.0


class _Box(NamedTuple):
    """Of one box, or of one in each thread; the area as the plain path rounds it."""

    x1: jax.Array
    y1: jax.Array
    x2: jax.Array
    y2: jax.Array
    area: jax.Array


def _suppresses(rule: Rule, a: _Box, b: _Box) -> jax.Array:
    """1 where a box suppresses the other, else 0. Symmetric in the boxes, down to the last bit."""
    width = jnp.maximum(jnp.minimum(a.x2, b.x2) - jnp.maximum(a.x1, b.x1) + rule.pixel_offset, 0.0)
    height = jnp.maximum(jnp.minimum(a.y2, b.y2) - jnp.maximum(a.y1, b.y1) + rule.pixel_offset, 0.0)
    product = width * height
    # A select between the product and the difference: compilers may not merge them into one instruction with one rounding.
    intersection = jnp.where(jnp.isnan(product), jnp.nan, product)
    union = a.area + b.area - intersection
    least = np.float32(rule.iou_threshold)
    if not rule.suppress_equal:
        least = np.nextafter(least, np.float32(np.inf))
    reaches = quotient_reaches(intersection, union, least).astype(jnp.int32)
    return jnp.where(union > 0, reaches, int(rule.empty >= least))


def quotient_reaches(a: jax.Array, b: jax.Array, least: np.float32) -> jax.Array:
    """Whether a / b, rounded to float32, is at least `least`; for a >= 0 and b > 0.

    The quotient of these compilers is off by up to two units of its last place. So this asks for the sign of a - m b,
    where m lies halfway between `least` and the float below: no quotient of two floats does. The factors are cut into halves
    of 12 bits, whose products have no rounding; where the sign is in doubt, their differences have none either.
    Below 2^-100 products would lose bits, and above 2^127 overflow.
    """
    if least <= 0:
        return a >= 0
    if least < np.finfo(np.float32).tiny:
        return a > 0
    high = _upper_half(least)
    low = least - high
    half_gap = (least - np.nextafter(least, np.float32(0))) / np.float32(2)
    b_high = _upper_half(b)
    b_low = b - b_high
    return a - high * b_high - high * b_low - low * b_high - low * b_low > -half_gap * b


def _upper_half(x):
    """The first 12 of a float's 24 bits."""
    if isinstance(x, np.float32):
        return (x.view(np.int32) & np.int32(-4096)).view(np.float32)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, jnp.int32) & -4096, jnp.float32)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _columns(boxes: jax.Array, areas: jax.Array, count: int) -> jax.Array:
    """Boxes `[*b, k, 4]` and areas `[*b, k]` to `[lists, 5, count]`: a coordinate of neighbouring boxes is read together."""
    boxes, areas = boxes.reshape(-1, *boxes.shape[-2:]), areas.reshape(-1, areas.shape[-1])
    columns = jnp.concatenate([boxes.swapaxes(1, 2), areas[:, None]], 1)
    return jnp.pad(columns, ((0, 0), (0, 0), (0, count - columns.shape[2])))


def fast_suppressed(boxes: jax.Array, areas: jax.Array, rule: Rule) -> jax.Array:
    """Fast NMS's rule: which boxes some earlier box of their list suppresses, itself suppressed or not.

    A program compares 128 boxes of a list with `FAST_ROWS` earlier ones; no overlap goes to memory.

    Args:
        boxes: `[*b, k, 4]` float32, lists of boxes, the best first in each.
        areas: `[*b, k]`.
        rule: see `Rule`.

    Returns:
        `[*b, k]` bool.
    """
    if not areas.size:
        return jnp.zeros(areas.shape, bool)
    padded, parts = _round_up(areas.shape[-1], TILE), _round_up(areas.shape[-1], FAST_ROWS) // FAST_ROWS

    def body(columns, suppressed):
        group, tile, part = (jax.lax.axis_index(name) for name in ("group", "tile", "part"))
        lanes = pl.ds(tile * TILE, TILE)
        own = _Box(*(columns[group, field, lanes] for field in range(5)))
        index = tile * TILE + jax.lax.broadcasted_iota(jnp.int32, (TILE,), 0)
        first = part * FAST_ROWS

        def turn(turn, found):
            for row in (first + turn * UNROLL + step for step in range(UNROLL)):
                other = _Box(*(columns[group, field, row] for field in range(5)))
                found = found | jnp.where(index > row, _suppresses(rule, own, other), 0)
            return found

        # None where all rows come later than the tile. Boxes that only fill up the tile come last and suppress none.
        rows = jnp.clip((tile + 1) * TILE - first, 0, FAST_ROWS)
        suppressed[group, part, lanes] = jax.lax.fori_loop(0, rows // UNROLL, turn, jnp.zeros((TILE,), jnp.int32))

    columns = _columns(boxes, areas, padded)
    found = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((len(columns), parts, padded), jnp.int32),
        grid=(len(columns), padded // TILE, parts),
        grid_names=("group", "tile", "part"),
        compiler_params=PARAMETERS,
    )(columns)
    return (found != 0).any(1)[:, : areas.shape[-1]].reshape(areas.shape)
