"""Non-maximum suppression on NVIDIA GPUs: Pallas kernels for Mosaic GPU.

A program is one group of 128 threads, and each thread has a box. Areas are computed in float32, in
the order of operations of `jaxseg.ops.boxes.intersection_and_union` and with each product rounded,
so that every comparison has the same result as in plain JAX.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxseg.ops.boxes import quotient_reaches, rounded
from jaxseg.ops.nms.suppression import Rule

# The number of boxes of a program, with one for each thread.
TILE = 128
# The number of rows with which a program of Fast NMS compares its boxes. With fewer rows, there are
# more programs to fill the GPU.
FAST_ROWS = 64
# The number of rows that are compared without a branch, so that they wait for memory together.
UNROLL = 4
# The boxes of a word of bits, the words of a tile, and the words that are read together.
WORD = 32
WORDS = TILE // WORD
GROUP = 16
PARAMETERS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup)


class _Box(NamedTuple):
    """One box, or one box in each thread; the area is rounded as in plain JAX."""

    x1: jax.Array
    y1: jax.Array
    x2: jax.Array
    y2: jax.Array
    area: jax.Array
    label: jax.Array | None = None


def _suppresses(rule: Rule, a: _Box, b: _Box) -> jax.Array:
    """Returns 1 if the boxes suppress each other, else 0; it is symmetric to the last bit."""
    width = jnp.maximum(jnp.minimum(a.x2, b.x2) - jnp.maximum(a.x1, b.x1) + rule.pixel_offset, 0.0)
    height = jnp.maximum(jnp.minimum(a.y2, b.y2) - jnp.maximum(a.y1, b.y1) + rule.pixel_offset, 0.0)
    intersection = rounded(width * height)
    union = a.area + b.area - intersection
    # Integers are used because Mosaic GPU does not support all operations on booleans.
    reaches = quotient_reaches(intersection, union, rule.least_iou).astype(jnp.int32)
    suppresses = jnp.where(union > 0, reaches, int(rule.empty >= rule.least_iou))
    return suppresses if a.label is None else jnp.where(a.label == b.label, suppresses, 0)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _columns(fields: Sequence[jax.Array], count: int) -> jax.Array:
    """Stacks fields `[*b, k]` of boxes to `[lists, fields, count]`, for contiguous reads."""
    columns = jnp.stack([field.reshape(-1, field.shape[-1]) for field in fields], 1)
    return jnp.pad(columns, ((0, 0), (0, 0), (0, count - columns.shape[2])))


def fast_suppressed(boxes: jax.Array, areas: jax.Array, rule: Rule) -> jax.Array:
    """Returns which boxes are suppressed by an earlier box of their list, as in Fast NMS.

    The earlier box may itself be suppressed. A program compares 128 boxes of a list with
    `FAST_ROWS` earlier ones; no IoU is written to memory.

    Args:
        boxes: lists of boxes, `[*b, k, 4]` float32, each in descending order of scores.
        areas: the areas of the boxes, `[*b, k]`.
        rule: the rule by which one box suppresses another.

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

        # There are no rows to compare if all of them come after the tile. Padding boxes come last
        # and suppress none.
        rows = jnp.clip((tile + 1) * TILE - first, 0, FAST_ROWS)
        suppressed[group, part, lanes] = jax.lax.fori_loop(0, rows // UNROLL, turn, jnp.zeros((TILE,), jnp.int32))

    columns = _columns([*jnp.moveaxis(boxes, -1, 0), areas], padded)
    found = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((len(columns), parts, padded), jnp.int32),
        # Only the last axis of the grid can be longer than 65,535.
        grid=(padded // TILE, parts, len(columns)),
        grid_names=("tile", "part", "group"),
        compiler_params=PARAMETERS,
    )(columns)
    return (found != 0).any(1)[:, : areas.shape[-1]].reshape(areas.shape)


def greedy_kept(boxes: jax.Array, areas: jax.Array, candidates: jax.Array, labels: jax.Array | None = None, *, rule: Rule) -> jax.Array:
    """Returns which boxes are kept by exact greedy NMS, where kept boxes suppress later ones.

    There are two kernels, as in torchvision: one compares all pairs and writes a bit for each, and
    the other one processes the boxes in order.

    Args:
        boxes: lists of boxes, `[*b, n, 4]` float32, each in descending order of scores; `n` is at
            most `MOST_BOXES`.
        areas: the areas of the boxes, `[*b, n]`.
        candidates: which boxes can be kept, `[*b, n]` bool.
        labels: `[*b, n]` int32, at most 2^24. Boxes suppress only boxes with the same label;
            without labels they suppress all others.
        rule: the rule by which one box suppresses another.

    Returns:
        `[*b, n]` bool.
    """
    if not areas.size:
        return jnp.zeros(areas.shape, bool)
    count = areas.shape[-1]
    fields = [*jnp.moveaxis(boxes, -1, 0), areas]
    if labels is not None:
        fields.append(labels.astype(jnp.float32))
    masks = _compare(_columns(fields, _round_up(count, TILE)), rule)
    candidates = _columns([candidates.astype(jnp.int32)], _round_up(count, TILE))[:, 0]
    return (_settle(masks, candidates) != 0)[:, :count].reshape(areas.shape)


def _compare(columns: jax.Array, rule: Rule) -> jax.Array:
    """Returns which boxes suppress each other, as the bits of int32 words.

    Bit i % 32 of the word `[list, i // 32, j]` is that of boxes i and j. A bit is defined only if
    the tile of 128 boxes that contains j does not come before that of i. A program compares 32
    boxes i with 128 boxes j.
    """
    lists, fields, count = columns.shape

    def body(columns, masks):
        group, word, tile = (jax.lax.axis_index(name) for name in ("group", "word", "tile"))

        @pl.when(word < (tile + 1) * WORDS)
        def _():
            lanes = pl.ds(tile * TILE, TILE)
            own = _Box(*(columns[group, field, lanes] for field in range(fields)))

            def turn(bit, mask):
                other = _Box(*(columns[group, field, word * WORD + bit] for field in range(fields)))
                return mask | (_suppresses(rule, own, other) << bit)

            masks[group, word, lanes] = jax.lax.fori_loop(0, WORD, turn, jnp.zeros((TILE,), jnp.int32), unroll=UNROLL)

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((lists, _round_up(count // WORD, GROUP), count), jnp.int32),
        grid=(count // WORD, count // TILE, lists),
        grid_names=("word", "tile", "group"),
        compiler_params=PARAMETERS,
    )(columns)


def _settle(masks: jax.Array, candidates: jax.Array) -> jax.Array:
    """Returns which candidates are kept; argument and result are int32 `[list, n]`, 1 or 0.

    A program processes a list in tiles of 128 boxes. First, the boxes that have been kept so far
    suppress boxes of the tile. Then the boxes of the tile suppress each other, one after the other,
    in four words of bits that every thread holds.
    """
    lists, count = candidates.shape
    words = _round_up(count // WORD, TILE)

    def body(masks, candidates, stays, kept, near, free):
        group = jax.lax.axis_index("group")
        lane = jax.lax.broadcasted_iota(jnp.int32, (TILE,), 0)
        for first in range(0, words, TILE):
            kept[pl.ds(first, TILE)] = jnp.zeros((TILE,), jnp.int32)

        def block(tile, carry):
            lanes = pl.ds(tile * TILE, TILE)
            # The loads start early, because their results are used late.
            rows, candidate = masks[group, pl.ds(tile * WORDS, WORDS), lanes], candidates[group, lanes]

            def pull(turn, removed):
                for word in (turn * GROUP + step for step in range(GROUP)):
                    removed = removed | (masks[group, word, lanes] & kept[word])
                return removed

            # Some words of the last iteration come after the tile, where nothing is kept yet.
            removed = jax.lax.fori_loop(0, (tile * WORDS + GROUP - 1) // GROUP, pull, jnp.zeros((TILE,), jnp.int32))
            near[...] = rows
            free[...] = jnp.where(removed == 0, candidate, 0)
            # Each box has a bit, which becomes 0 if a kept box suppresses it, and also when the box
            # has been processed.
            live = (jnp.int32(-1),) * WORDS
            own = removed
            for word in range(WORDS):

                def turn(bit, state, word=word):
                    keep, *live = state
                    box = word * WORD + bit
                    # All bits are set if the box is kept, and none otherwise: its bit is shifted to
                    # the sign and back.
                    alive = live[0] << (WORD - 1 - bit) >> (WORD - 1)
                    # Each step waits for the step before, from `alive` to `live`. The products do
                    # not depend on it, and compilers do not move them.
                    goes = [near[other, box] * free[box] for other in range(word, WORDS)]
                    return keep | (free[box] << bit & alive), *(old & ~(new & alive) for old, new in zip(live, goes, strict=True))

                keep, _, *live = jax.lax.fori_loop(0, WORD, turn, (jnp.int32(0), *live), unroll=WORD)
                kept[tile * WORDS + word] = keep
                own = jnp.where(lane // WORD == word, keep, own)
            stays[group, lanes] = (own >> (lane & (WORD - 1))) & 1
            return carry

        jax.lax.fori_loop(0, count // TILE, block, jnp.int32(0))

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((lists, count), jnp.int32),
        scratch_types=[plgpu.SMEM((words,), jnp.int32), plgpu.SMEM((WORDS, TILE), jnp.int32), plgpu.SMEM((TILE,), jnp.int32)],
        grid=(lists,),
        grid_names=("group",),
        compiler_params=PARAMETERS,
    )(masks, candidates)
