"""RoIAlign of bitmaps that are packed to bits, each over its own part of the network's input.

mmdetection and torchvision make the targets of masks in this way: they resize the mask of an object
to the network's input by nearest neighbours, and apply RoIAlign to it with as many samples as a
region has pixels. Both are linear along each axis, so they are two matrix products with the pixels
that were resized, and the mask at the input's size is never made.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from jaxseg.ops.masks import unpack_bits
from jaxseg.structures import BitmapPool

# A line begins at the first whole pixel that is not less than its exact place by more than this,
# so that rounding errors do not move lines that begin at a whole pixel.
EDGE_GUARD = 2.0**-11
# The number of rows and columns of a bitmap that are read at once, which bounds the memory.
_TILE = 128


def bitmap_targets(
    bitmaps: BitmapPool,
    objects: Int32[Array, "R"],
    regions: Float32[Array, "R 4"],
    mask_size: Int32[Array, "2"],
    size: int,
    *,
    aligned: bool,
    longest: int,
) -> Float32[Array, "R {size} {size}"]:
    """Applies RoIAlign to the bitmap of each region's object.

    Args:
        bitmaps: the bitmaps of an image.
        objects: the row of each region's object; a row without pixels gives zeros.
        regions: `x1, y1, x2, y2` in pixels of the network's input.
        mask_size: the height and width of the whole masks, whose last pixels are repeated.
        size: the number of cells along a side of the result.
        aligned: whether regions are shifted by half a pixel, so that pixels have their values at
            their centres.
        longest: the longest side in pixels that a region can have.
    """
    first, sizes, frames = (jnp.asarray(values)[objects] for values in (bitmaps.starts, bitmaps.sizes, bitmaps.frames))
    # A tile may begin at the last byte.
    packed, pitch = jnp.pad(jnp.asarray(bitmaps.bits), (0, _TILE // 8)), -(-sizes[:, 1] // 8)
    cells = functools.partial(_weights, size=size, aligned=aligned, samples=max(-(-longest // size), 1))

    def weights(axis: int, tile: Int32[Array, ""]) -> Float32[Array, "R s t"]:
        """Returns the weights of the pixels of a tile along x (0) or y (1)."""
        sides = (frames[:, axis], frames[:, 2 + axis], sizes[:, 1 - axis], regions[:, axis], regions[:, 2 + axis])
        return jax.vmap(functools.partial(cells, length=mask_size[1 - axis], tile=tile))(*sides)

    def read(place: Int32[Array, ""]) -> UInt8[Array, "b"]:
        return jax.lax.dynamic_slice(packed, (place,), (_TILE // 8,))

    def pixels(row: Int32[Array, ""], column: Int32[Array, ""]) -> Bool[Array, "R t t"]:
        lines = first[:, None] + (row * _TILE + jnp.arange(_TILE)) * pitch[:, None] + column * (_TILE // 8)
        return unpack_bits(jax.vmap(jax.vmap(read))(lines), _TILE)

    def add_row(row: Int32[Array, ""], total: Float32[Array, "R s s"]) -> Float32[Array, "R s s"]:
        down = weights(1, row)

        def add_tile(column: Int32[Array, ""], total: Float32[Array, "R s s"]) -> Float32[Array, "R s s"]:
            bits = pixels(row, column).astype(jnp.float32)
            return total + jnp.einsum("rym,rmn,rxn->ryx", down, bits, weights(0, column), precision=jax.lax.Precision.HIGHEST)

        return jax.lax.fori_loop(0, columns, add_tile, total)

    rows, columns = -(-sizes.max(0, initial=0) // _TILE)
    return jax.lax.fori_loop(0, rows, add_row, jnp.zeros((len(objects), size, size)))


def _weights(
    low: Float32[Array, ""],
    high: Float32[Array, ""],
    count: Int32[Array, ""],
    start: Float32[Array, ""],
    end: Float32[Array, ""],
    *,
    length: Int32[Array, ""],
    tile: Int32[Array, ""],
    size: int,
    aligned: bool,
    samples: int,
) -> Float32[Array, "{size} t"]:
    """Returns the weights of lines of a bitmap in the cells of a region, along one axis.

    Args:
        low, high: the position in the input where the first line begins and the last one ends.
        count: the number of lines; lines from there on have the weight 0.
        start, end: the region's side.
        length: the number of pixels of the whole mask at the input's size.
        tile: the index of the tile of lines.
        size: the number of cells.
        aligned: see `bitmap_targets`.
        samples: the largest number of samples of a cell.
    """
    line = jnp.minimum(tile * _TILE + jnp.arange(_TILE + 1), count)
    edges = jnp.ceil(low + line * ((high - low) / jnp.maximum(count, 1)) - EDGE_GUARD)
    side = end - start if aligned else jnp.maximum(end - start, 1.0)
    per_cell = jnp.maximum(jnp.ceil(side / size), 1.0)
    sample = jnp.arange(samples, dtype=jnp.float32)
    place = (jnp.arange(size)[:, None] + (sample + 0.5) / per_cell) * (side / size) + start - (0.5 if aligned else 0.0)
    used = (sample < per_cell) & (place >= -1) & (place <= length)
    place = jnp.clip(place, 0.0, length - 1.0)
    # The bilinear weight of all pixels before an edge grows from 0 to 1 within one pixel.
    before = jnp.where(used[..., None], jnp.clip(edges - place[..., None], 0.0, 1.0), 0.0).sum(1) / per_cell
    return jnp.abs(before[:, 1:] - before[:, :-1])
