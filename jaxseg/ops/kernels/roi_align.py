"""RoIAlign and its gradient on NVIDIA GPUs (Mosaic GPU).

Each is one launch for all levels of a pyramid and all images.

XLA computes the weights of bilinear sampling for each axis: a cell is a sum of pixels, each with
the weight of its row times that of its column. A program is one group of 128 threads that process
the same RoI and share the channels of a pixel, so that a load is contiguous in memory. Sums are
float32.

The sizes of tiles and groups are derived and have not been measured: the loads of one iteration of
a loop are in flight together, and the state of a program is small enough for several programs in a
multiprocessor's registers. Rows and columns of cells share one index, because with more than four
indices the compiler does not recognise that a load is aligned, and splits it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
from jax import Array

# The largest number of channels of a program.
MOST_CHANNELS = 256
# The rows and columns of pixels in one iteration of the loops over a cell.
PIXEL_ROWS, PIXEL_COLUMNS = 2, 4
# The side of a tile of the gradient in pixels, and the rows and columns of cells in one iteration
# of the loops over the part of a RoI in the tile.
TILE, CELL_ROWS, CELL_COLUMNS = 4, 2, 4
# The number of bits of a word, with one for each RoI.
WORD = 32
# No program reads memory that a program has written, so threads need not wait for each other.
PARAMETERS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup, unsafe_no_auto_barriers=True)


def _groups(touched: Array, size: int) -> Array:
    """Returns the first touched entry, and the iterations from it to the last one, `[..., 2]`.

    Args:
        touched: whether an entry is touched, `[..., n]` bool.
        size: the number of entries in one iteration.
    """
    entries = jnp.arange(touched.shape[-1], dtype=jnp.int32)
    first = jnp.where(touched, entries, touched.shape[-1]).min(-1)
    end = jnp.where(touched, entries + 1, 0).max(-1)
    return jnp.stack([first, (jnp.maximum(end - first, 0) + size - 1) // size], -1)


def _longer(table: Array, count: int, axis: int = -1) -> Array:
    """Appends zeros to a table, for a last group that ends beyond it."""
    padding = [(0, 0)] * table.ndim
    padding[axis] = (0, count)
    return jnp.pad(table, padding)


def _in_chunks(array: Array) -> Array:
    """Reshapes an array `[..., C]` to `[..., chunks, channels of a program]`."""
    return array.reshape(*array.shape[:-1], -1, math.gcd(array.shape[-1], MOST_CHANNELS))


def _weighted_sum(weights: Sequence[Any], values: Sequence[Any], start: Any = None) -> Any:
    """Computes the sum of scalars times arrays, with one instruction for each term."""
    for weight, value in zip(weights, values, strict=True):
        start = weight * value if start is None else start + weight * value
    return start


def _on_own_level(own: Any, levels: Sequence[Any], function: Callable[[Any], Any]) -> Any:
    """Returns the function's result for the level with the index `own`, which is data."""
    return jax.lax.switch(own, [functools.partial(function, level) for level in levels])


def pool_samples(features: Sequence[Array], levels: Array, rows: tuple[Array, Array], columns: tuple[Array, Array]) -> Array:
    """Pools RoIs as sums over the pixels that their samples read.

    Args:
        features: the levels of the pyramid, `[B, h, w, C]` each; C is a multiple of 128.
        levels: the index of the level from which each RoI is pooled, `[B, R]`.
        rows: for each row of cells the pixels along y and their weights, `[B, R, P, K]` each. The
            program has K x K sums, so K should be small.
        columns: for each column of cells the pixels along x and their weights.

    Returns:
        The pooled RoIs, `[B, R, P, P, C]`, in the type of the features.
    """
    cells, taps = rows[0].shape[2], range(rows[0].shape[-1])

    def body(levels, row_pixels, row_weights, column_pixels, column_weights, *features_and_pooled):
        *features, pooled = features_and_pooled
        image, chunk, roi, row = map(jax.lax.axis_index, GRID)
        y = [row_pixels[image, roi, row, i] for i in taps]
        y_weights = [row_weights[image, roi, row, i] for i in taps]

        def pool(feature):
            def cell(column, carry):
                x = [column_pixels[image, roi, column, i] for i in taps]
                x_weights = [column_weights[image, roi, column, i] for i in taps]
                pixels = [[feature[image, y_, x_, chunk].astype(jnp.float32) for y_ in y] for x_ in x]
                total = _weighted_sum(x_weights, [_weighted_sum(y_weights, own) for own in pixels])
                pooled[image, roi, row * cells + column, chunk] = total.astype(pooled.dtype)
                return carry

            jax.lax.fori_loop(0, cells, cell, 0)

        _on_own_level(levels[image, roi], features, pool)

    return _pool(body, features, levels, (*rows, *columns))


def pool_pixels(features: Sequence[Array], levels: Array, rows: Array, columns: Array) -> Array:
    """Pools RoIs as sums over all pixels under them, for any number of samples.

    Args:
        features: the levels of the pyramid, `[B, h, w, C]` each; C is a multiple of 128.
        levels: the index of the level from which each RoI is pooled, `[B, R]`.
        rows: for each row of cells the weights of the rows of pixels, `[B, R, P, H]`; H is at least
            the height of the largest level.
        columns: for each column of cells the weights of the columns of pixels, `[B, R, P, W]`.

    Returns:
        The pooled RoIs, `[B, R, P, P, C]`, in the type of the features.
    """
    row_groups, column_groups = _groups(rows > 0, PIXEL_ROWS), _groups(columns > 0, PIXEL_COLUMNS)
    rows, columns = _longer(rows, PIXEL_ROWS - 1), _longer(columns, PIXEL_COLUMNS - 1)
    cells = rows.shape[2]

    def body(levels, rows, row_groups, columns, column_groups, *features_and_pooled):
        *features, pooled = features_and_pooled
        image, chunk, roi, row = map(jax.lax.axis_index, GRID)
        top, row_turns = row_groups[image, roi, row, 0], row_groups[image, roi, row, 1]
        zero = jnp.zeros(pooled.shape[-1], jnp.float32)

        def cell(column, carry):
            left, column_turns = column_groups[image, roi, column, 0], column_groups[image, roi, column, 1]

            def sum_pixels(feature):
                _, height, width, _, _ = feature.shape

                def add_columns(group, total):
                    x = [left + PIXEL_COLUMNS * group + i for i in range(PIXEL_COLUMNS)]
                    x_weights = [columns[image, roi, column, x_] for x_ in x]
                    x = [jnp.minimum(x_, width - 1) for x_ in x]

                    def add_rows(group, sums):
                        y = [top + PIXEL_ROWS * group + i for i in range(PIXEL_ROWS)]
                        y_weights = [rows[image, roi, row, y_] for y_ in y]
                        y = [jnp.minimum(y_, height - 1) for y_ in y]
                        pixels = [[feature[image, y_, x_, chunk].astype(jnp.float32) for y_ in y] for x_ in x]
                        return [_weighted_sum(y_weights, own, total) for total, own in zip(sums, pixels, strict=True)]

                    sums = jax.lax.fori_loop(0, row_turns, add_rows, [zero] * PIXEL_COLUMNS)
                    return _weighted_sum(x_weights, sums, total)

                return jax.lax.fori_loop(0, column_turns, add_columns, zero)

            total = _on_own_level(levels[image, roi], features, sum_pixels)
            pooled[image, roi, row * cells + column, chunk] = total.astype(pooled.dtype)
            return carry

        jax.lax.fori_loop(0, cells, cell, 0)

    return _pool(body, features, levels, (rows, row_groups, columns, column_groups))


GRID = ("image", "chunk", "roi", "row")


def _pool(body: Callable[..., None], features: Sequence[Array], levels: Array, tables: Sequence[Array]) -> Array:
    """Runs `body` for each row of cells of each RoI and each chunk of channels.

    It is called with the references `levels, *tables, *features, pooled`.
    """
    cells, channels = tables[0].shape[2], features[0].shape[-1]
    features = [_in_chunks(feature) for feature in features]
    *_, chunks, size = features[0].shape
    pooled = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((*levels.shape, cells * cells, chunks, size), features[0].dtype),
        grid=(levels.shape[0], chunks, levels.shape[1], cells),
        grid_names=GRID,
        compiler_params=PARAMETERS,
    )(levels, *tables, *features)
    return pooled.reshape(*levels.shape, cells, cells, channels)


def spread(gradient: Array, levels: Array, rows: Array, columns: Array, *, sizes: Sequence[tuple[int, int]]) -> tuple[Array, ...]:
    """Computes the gradient of the features from the weights of pixels and the cells' gradients.

    A program owns a tile of pixels and processes the RoIs that touch it in their order. No two
    programs add to the same pixel, so there are no atomics, and every run gives the same bits.

    Args:
        gradient: the gradient of the pooled RoIs, `[B, R, P, P, C]`; C is a multiple of 128.
        levels: see `pool_pixels`.
        rows: see `pool_pixels`.
        columns: see `pool_pixels`.
        sizes: the height and width of each level.

    Returns:
        For each level `[B, h, w, C]`, in the type of `gradient`.
    """
    images, _, cells, _, channels = gradient.shape
    rows, columns = _in_tiles(rows), _in_tiles(columns)
    row_groups, column_groups = (
        _groups(jnp.moveaxis((table > 0).any(-1), 2, -1), size) for table, size in ((rows, CELL_ROWS), (columns, CELL_COLUMNS))
    )
    rows, columns = _longer(rows, CELL_ROWS - 1, 2), _longer(columns, CELL_COLUMNS - 1, 2)
    tiles = _tiles(sizes)
    words = _rois_of_tiles(levels, row_groups[..., 1] > 0, column_groups[..., 1] > 0, tiles)
    # Most words are empty, and without this array a program would wait for each of them.
    used_words = _packed(words != 0)
    gradient = _in_chunks(gradient.reshape(*levels.shape, cells * cells, channels))
    *_, chunks, size = gradient.shape

    def body(gradient, rows, row_groups, columns, column_groups, used_words, words, tiles, *features):
        image, chunk, tile = map(jax.lax.axis_index, ("image", "chunk", "tile"))
        level, tile_row, tile_column = (tiles[tile, i] for i in range(3))
        y, x = ([TILE * start + i for i in range(TILE)] for start in (tile_row, tile_column))

        def add_roi(roi, totals):
            top, row_turns = row_groups[image, roi, tile_row, 0], row_groups[image, roi, tile_row, 1]
            left, column_turns = column_groups[image, roi, tile_column, 0], column_groups[image, roi, tile_column, 1]

            def add_columns(group, totals):
                q = [left + CELL_COLUMNS * group + i for i in range(CELL_COLUMNS)]
                x_weights = [[columns[image, roi, q_, tile_column, i] for q_ in q] for i in range(TILE)]
                q = [jnp.minimum(q_, cells - 1) for q_ in q]

                def add_rows(group, totals):
                    p = [top + CELL_ROWS * group + i for i in range(CELL_ROWS)]
                    y_weights = [[rows[image, roi, p_, tile_row, i] for p_ in p] for i in range(TILE)]
                    p = [jnp.minimum(p_, cells - 1) for p_ in p]
                    own = [[gradient[image, roi, p_ * cells + q_, chunk].astype(jnp.float32) for q_ in q] for p_ in p]
                    along_x = [[_weighted_sum(weights, row) for row in own] for weights in x_weights]
                    return [
                        [_weighted_sum(weights, column, total) for total, column in zip(row, along_x, strict=True)]
                        for row, weights in zip(totals, y_weights, strict=True)
                    ]

                return jax.lax.fori_loop(0, row_turns, add_rows, totals)

            return jax.lax.fori_loop(0, column_turns, add_columns, totals)

        def add_words(group, totals):
            def add_word(bit, totals):
                word = WORD * group + bit
                return _for_each_bit(words[image, word, tile], lambda bit, totals: add_roi(WORD * word + bit, totals), totals)

            return _for_each_bit(used_words[image, group, tile], add_word, totals)

        zero = jnp.zeros(size, jnp.float32)
        totals = jax.lax.fori_loop(0, used_words.shape[1], add_words, [[zero] * TILE] * TILE)

        def write(feature):
            _, height, width, _, _ = feature.shape
            for y_, row in zip(y, totals, strict=True):
                for x_, total in zip(x, row, strict=True):

                    @pl.when((y_ < height) & (x_ < width))
                    def _(y_=y_, x_=x_, total=total):
                        feature[image, y_, x_, chunk] = total.astype(feature.dtype)

        _on_own_level(level, features, write)

    features = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct((images, *side, chunks, size), gradient.dtype) for side in sizes],
        grid=(images, chunks, len(tiles)),
        grid_names=("image", "chunk", "tile"),
        compiler_params=PARAMETERS,
    )(gradient, rows, row_groups, columns, column_groups, used_words, words, jnp.asarray(tiles))
    return tuple(feature.reshape(*feature.shape[:3], channels) for feature in features)


def _tiles(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the level, row and column of each tile, `[tiles, 3]`."""
    return np.array(
        [(level, *tile) for level, (height, width) in enumerate(sizes) for tile in np.ndindex(-(-height // TILE), -(-width // TILE))],
        np.int32,
    )


def _in_tiles(weights: Array) -> Array:
    """Reshapes weights `[B, R, P, H]` to `[B, R, P, tiles, pixels of a tile]`, for single loads."""
    weights = _longer(weights, -weights.shape[-1] % TILE)
    return weights.reshape(*weights.shape[:-1], -1, TILE)


def _rois_of_tiles(levels: Array, in_rows: Array, in_columns: Array, tiles: np.ndarray) -> Array:
    """Returns which RoIs touch each tile, as bits (see `_packed`)."""
    level, row, column = tiles.T
    return _packed(in_rows[..., row] & in_columns[..., column] & (levels[..., None] == level))


def _packed(flags: Array) -> Array:
    """Packs flags `[B, n, tiles]` to the bits of words `[B, words, tiles]`.

    The first flag is the highest bit, so that the leading zeros of a word count the flags that are
    not set.
    """
    flags = _longer(flags, -flags.shape[1] % WORD, 1)
    flags = flags.reshape(flags.shape[0], -1, WORD, flags.shape[-1])
    bits = jnp.uint32(1) << jnp.arange(WORD - 1, -1, -1, dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(jnp.where(flags, bits[:, None], 0).sum(2, dtype=jnp.uint32), jnp.int32)


def _for_each_bit(word: Any, function: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Calls `function(index, carry)` for each bit that is set, the highest first."""

    def visit(state):
        word, carry = state
        first = jax.lax.clz(word)
        return word & (np.int32(2**31 - 1) >> first), function(first, carry)

    return jax.lax.while_loop(lambda state: state[0] != 0, visit, (word, carry))[1]
