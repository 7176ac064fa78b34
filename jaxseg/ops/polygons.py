"""Polygons drawn over regions, cell for cell as pycocotools draws them, without a loop over pixels.

maskrcnn-benchmark and detectron2 make the targets of masks in this way: they shift and scale the
polygons of an object to each region, and draw them there with `rleFrPoly` of cocodataset/cocoapi.

That function rounds corners to fifths of a cell, and walks along each edge in whole steps of its
longer side. Where the walk crosses the centre line of a column, the column changes between inside
and outside, from a certain row on. Here, this row follows from the corners in whole numbers, for
each edge and each column at once. Each polygon of an object has a bit of its own, so one XOR over
all edges draws all of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8, UInt32

from jaxseg.structures import PolygonPool

# The number of polygons of an object that are told apart: the bits of a number.
MOST_PARTS = 32
# The number of edges that are drawn at once, which bounds the memory.
_EDGES = 128
# Corners are rounded to this many positions in a cell.
_STEPS = 5
# Farther corners, in steps, are moved to this distance, so that products fit into 32 bits. It is
# some 58 times the side of a region of 28 cells.
_FARTHEST = 2**13 - 1


def polygon_targets(
    polygons: PolygonPool, objects: Int32[Array, "R"], regions: Float32[Array, "R 4"], size: int, *, least_side: float
) -> Bool[Array, "R {size} {size}"]:
    """Draws the polygons of each region's object over the region.

    Args:
        polygons: the polygons of an image, in pixels of the network's input.
        objects: the row of each region's object; a row without polygons gives an empty mask.
        regions: `x1, y1, x2, y2` in pixels of the network's input.
        size: the number of cells along a side of the result.
        least_side: the side in pixels that smaller regions are taken to have.
    """
    points = jnp.pad(jnp.asarray(polygons.points), ((0, _EDGES + 1), (0, 0)))
    parts = jnp.pad(jnp.asarray(polygons.parts), (0, _EDGES))
    first, count = jnp.asarray(polygons.starts)[objects], jnp.asarray(polygons.counts)[objects]
    corner = regions[:, None, :2]
    scale = size / jnp.maximum(regions[:, None, 2:] - corner, least_side)

    def add_edges(step: Int32[Array, ""], drawn: UInt32[Array, "R s s"]) -> UInt32[Array, "R s s"]:
        start = first + step * _EDGES
        corners = jax.vmap(lambda place: jax.lax.dynamic_slice(points, (place, 0), (_EDGES + 1, 2)))(start)
        part = jax.vmap(lambda place: jax.lax.dynamic_slice(parts, (place,), (_EDGES,)))(start)
        own = step * _EDGES + jnp.arange(_EDGES) < count[:, None]
        edges = jax.vmap(_draw_edges, in_axes=(0, 0, None))((corners - corner) * scale, jnp.where(own, part, 0), size)
        return drawn ^ edges

    empty = jnp.zeros((len(objects), size, size), jnp.uint32)
    return jax.lax.fori_loop(0, -(-count.max(initial=0) // _EDGES), add_edges, empty) > 0


def _draw_edges(corners: Float32[Array, "E1 2"], parts: UInt8[Array, "E"], size: int) -> UInt32[Array, "{size} {size}"]:
    """Returns which cells lie below an odd number of edges, as a bit for each part.

    Args:
        corners: the first corner of each edge and the second one of the last edge, in cells.
        parts: the number of each edge's polygon, from 1 on; 0 is no edge.
        size: the number of cells along a side.
    """
    corner = _to_steps(corners)
    crossed, rows = _crossings(corner[:-1], corner[1:], size)
    bit = jnp.uint32(1) << (jnp.maximum(parts, 1) - 1).astype(jnp.uint32)
    bits = jnp.where(crossed & (parts > 0)[:, None], bit[:, None], jnp.uint32(0))
    below = rows[:, None, :] <= jnp.arange(size)[:, None]
    return jax.lax.reduce(jnp.where(below, bits[:, None, :], jnp.uint32(0)), np.uint32(0), jax.lax.bitwise_xor, (0,))


def _to_steps(cells: Float32[Array, "n 2"]) -> Int32[Array, "n 2"]:
    """Computes `(int)(5 * x + .5)` of C exactly, though 5 * x need not be a float32.

    The comparisons are with the fractions from which on the result is one larger. C truncates, so
    the results below zero are those of -x, less one step.
    """
    magnitude = jnp.minimum(jnp.abs(cells), _FARTHEST / _STEPS)
    whole = jnp.floor(magnitude)
    limits = _least_float32((np.arange(_STEPS) + 0.5) / _STEPS)
    rounded = whole.astype(jnp.int32) * _STEPS + ((magnitude - whole)[..., None] >= limits).sum(-1)
    return jnp.where(cells >= 0, rounded, jnp.minimum(1 - rounded, 0))


def _least_float32(values: np.ndarray) -> np.ndarray:
    """Returns the least float32 that is not below each value."""
    nearest = values.astype(np.float32)
    return np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)


def _crossings(start: Int32[Array, "E 2"], end: Int32[Array, "E 2"], size: int) -> tuple[Bool[Array, "E {size}"], Int32[Array, "E {size}"]]:
    """Returns the columns whose centre line each edge crosses, and the first row below the edge.

    Args:
        start, end: the corners of each edge, in fifths of a cell.
        size: the number of columns, and of rows; the latter is the row of crossings below the grid.
    """
    length = jnp.abs(end - start)
    flat = length[:, 0] >= length[:, 1]
    swapped = jnp.where(flat, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])[:, None]
    start, end = jnp.where(swapped, end, start), jnp.where(swapped, start, end)
    # All further numbers have the shape [edges, columns].
    (x, y), (right, low) = (start.T[:, :, None], (end - start).T[:, :, None])
    line = _STEPS * jnp.arange(size) + _STEPS // 2
    crossed = (jnp.minimum(x, x + right) <= line) & (line < jnp.maximum(x, x + right))
    # A flat edge goes one step along x at a time. Of the two steps at the line, the upper counts.
    along_x = 2 * low * (line - x + (low < 0)) + right, 2 * right
    # A steep edge goes one step along y at a time. The last step before the line counts.
    rightward = (2 * (line - x) + 1) * low - 1, 2 * right
    leftward = (2 * (x - line) - 1) * low, -2 * right
    steep = [jnp.where(right > 0, first, second) for first, second in zip(rightward, leftward, strict=True)]
    above, per = (jnp.where(flat[:, None], first, second) for first, second in zip(along_x, steep, strict=True))
    rows = (y + above // jnp.maximum(per, 1) + _STEPS // 2) // _STEPS
    return crossed, jnp.clip(rows, 0, size)
