"""RoIAlign over a feature pyramid: the level of each box, and bilinear samples averaged in the cells of a grid.

Sampling and averaging are separable: the result is `rows @ features @ columns^T`, where `rows [P, h]` holds the mean
bilinear weights of each cell's samples, whatever their number. Three plain forms with the same results build on that ("xla" is the
best of them by a rule, see `_default`), and `jaxseg.ops.kernels.roi_align` ("mosaic_gpu", see `jaxseg.ops.implementation`):

- "gather": adds up the pixels around each sample. Needs a fixed number of samples.
- "matmul": two matrix products with whole levels. The cost grows with the levels' area, not with the samples.
- "window": a loop over RoIs, two small products with the pixels under each. The least arithmetic and no scatter, but
  sequential: for CPUs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxseg.devices import platform
from jaxseg.ops.boxes import box_area, rounded
from jaxseg.ops.implementation import NAMES, ImplementationError, dispatch, named
from jaxseg.ops.kernels import roi_align as kernels
from jaxseg.structures import AnyArray

Form = Literal["gather", "matmul", "window"]
FORMS: tuple[Form, ...] = get_args(Form)

# Area (its root, in pixels) and level of the box that FPN's rule starts from: an ImageNet picture on P4 (arXiv:1612.03144, equation 1).
CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4


def pyramid_levels(
    boxes: Float32[AnyArray, "*b R 4"],
    *,
    finest: int = 2,
    coarsest: int = 5,
    pixel_offset: float = 0.0,
    ratio_epsilon: float = 0.0,
    level_epsilon: float = 0.0,
) -> Int32[Array, "*b R"]:
    """The pyramid level each box is pooled from, `floor(4 + log2(sqrt(area) / 224))` within the levels there are.

    Args:
        boxes: `x1, y1, x2, y2` in pixels of the network's input.
        finest: the lowest answer.
        coarsest: the highest answer.
        pixel_offset: added to widths and heights (maskrcnn-benchmark: 1).
        ratio_epsilon: added to the quotient under the logarithm (maskrcnn-benchmark 1e-6, detectron2 1e-8; mmdetection adds
            1e-6 to `sqrt(area) / 56`, that is 2.5e-7).
        level_epsilon: added to the level before it is rounded down (torchvision: 1e-6).
    """
    side = jnp.sqrt(jnp.maximum(box_area(boxes, pixel_offset), 0.0))
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(_quotient(side, CANONICAL_SIDE) + ratio_epsilon) + level_epsilon)
    return jnp.clip(level, finest, coarsest).astype(jnp.int32)


class _Static(NamedTuple):
    """What is known when tracing; arguments of `roi_align`, and the height and width of each level."""

    sizes: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    output_size: int
    sampling_ratio: int
    aligned: bool


class _Choice(NamedTuple):
    """What computes it: the implementation for `dispatch`, the plain form of a result alone, and that of one with its gradient."""

    implementation: str | None
    alone: Form
    with_gradient: Form


class _Axis(NamedTuple):
    """The samples of every RoI along y or x: where it starts, the size of a cell, in pixels of its level; samples per cell."""

    start: Array
    cell: Array
    samples: Array


def roi_align(
    features: Sequence[Float[Array, "B _ _ C"]],
    boxes: Float32[Array, "B R 4"],
    levels: Int32[Array, "B R"],
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    implementation: str | None = None,
) -> Float[Array, "B R {output_size} {output_size} C"]:
    """RoIAlign (arXiv:1703.06870, section 3) as the compiled operators of maskrcnn-benchmark, detectron2 and mmcv compute it.

    A box is cut into `output_size` x `output_size` cells; each gets the mean of its bilinear samples. Samples more than a pixel
    outside of the level count as 0, nearer ones take the border's value. Sums are float32, whatever the features are. Gradients
    flow to the features only.

    Args:
        features: the levels, fine to coarse.
        boxes: `x1, y1, x2, y2` in pixels of the network's input. Boxes without area give numbers, too; see `aligned`.
        levels: which of `features` each box is pooled from.
        strides: pixels of the input per pixel of each level.
        output_size: cells per side.
        sampling_ratio: samples per cell and side; 0 takes as many as a cell has pixels, rounded up.
        aligned: shift by half a pixel, so that samples lie where the pixels' centres are (detectron2, mmdetection). A box
            without area is then 0 where sampling is adaptive. Without, boxes are at least one pixel of the level wide and high
            (maskrcnn-benchmark, torchvision).
        implementation: "auto", "xla", "mosaic_gpu", "gather", "matmul" or "window", see the module; None is "auto". The kernel takes
            float32 and bfloat16, and channels in multiples of 128.

    Raises:
        ValueError: when there are not as many strides as levels, or the implementation does not exist or cannot do this.
    """
    if len(features) != len(strides):
        raise ValueError(f"{len(features)} levels but {len(strides)} strides.")
    if implementation not in (None, *NAMES, *FORMS):
        raise ImplementationError(f"RoIAlign's implementation {implementation!r} is not one of {', '.join((*NAMES, *FORMS))}.")
    if implementation == "gather" and not sampling_ratio:
        raise ImplementationError('implementation "gather" needs a fixed sampling_ratio; adaptive sampling (0) has "matmul" and "window".')
    sizes = tuple((feature.shape[1], feature.shape[2]) for feature in features)
    static = _Static(sizes, tuple(strides), output_size, sampling_ratio, aligned)
    forms = (implementation, implementation) if implementation in FORMS else _default(static, boxes.shape[1])
    # Nothing to launch where there are no RoIs.
    choice = _Choice(named(implementation) if boxes.size else "xla", *forms)
    return _align(choice, static, tuple(features), boxes, levels)


# See `_default`.
_PIXELS_A_ROW = 200


def _default(static: _Static, rois: int) -> tuple[Form, Form]:
    """The forms for so many RoIs an image on this platform: where only the result is wanted, and where its gradient is, too.

    CPUs: the loop over RoIs; for fixed samples also the gather, which XLA fuses into one pass there, where the cells
    are many enough to be worth its copy of all pixels into one table. Its gradient, a scatter, is slow there, and XLA computes
    the result again for each use in a backward pass.
    benchmarks/roi_align.py measures that. Elsewhere a loop has to wait for each turn: the gather for fixed samples, and for adaptive
    ones the products, whose cost does not depend on their number. This has not been measured on GPUs.

    TPUs take the products for small maps as well. A RoI costs them by its cells' side times the levels' pixels, and the gather
    with its scatter by the rows that it moves, `(2 * samples * cells)^2`: by XLA's own estimate about the same where the first
    is `_PIXELS_A_ROW` times the second. The figures are in docs/benchmarks.md; nothing has run on a TPU.
    """
    pixels = sum(height * width for height, width in static.sizes)
    if platform() == "cpu":
        many = 2 * rois * static.output_size**2 > pixels
        return ("gather" if static.sampling_ratio and many else "window"), "window"
    rows = (2 * static.sampling_ratio * static.output_size) ** 2
    small = platform() == "tpu" and static.output_size * pixels <= _PIXELS_A_ROW * rows
    return ("gather", "gather") if static.sampling_ratio and not small else ("matmul", "matmul")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _align(choice: _Choice, static: _Static, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    def plain(features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
        return _POOL[choice.alone](static, features, boxes, levels).astype(features[0].dtype)

    kernel = functools.partial(_kernel_pool, static)
    return dispatch(choice.implementation, features, boxes, levels, kernel=kernel, plain=plain, obstacle=_obstacle(features[0]))


def _align_forward(
    choice: _Choice, static: _Static, features: tuple[Array, ...], boxes: Array, levels: Array
) -> tuple[Array, tuple[Array, Array]]:
    # The result is linear in the features: they are not needed again.
    return _align(choice._replace(alone=choice.with_gradient), static, features, boxes, levels), (boxes, levels)


def _align_backward(choice: _Choice, static: _Static, rois: tuple[Array, Array], gradient: Array) -> tuple[tuple[Array, ...], None, None]:
    def plain(gradient: Array, boxes: Array, levels: Array) -> tuple[Array, ...]:
        gradients = _SPREAD[choice.with_gradient](static, gradient, boxes, levels)
        return tuple(level.astype(gradient.dtype) for level in gradients)

    kernel = functools.partial(_kernel_spread, static)
    return dispatch(choice.implementation, gradient, *rois, kernel=kernel, plain=plain, obstacle=_obstacle(gradient)), None, None


_align.defvjp(_align_forward, _align_backward)


def _axes(static: _Static, boxes: Array, levels: Array) -> tuple[_Axis, _Axis]:
    """Samples along y and along x; entries `[*b, R]`."""
    scale = jnp.asarray([1.0 / stride for stride in static.strides], jnp.float32)[levels]
    shift = 0.5 if static.aligned else 0.0

    def axis(low: Array, high: Array) -> _Axis:
        start = low * scale - shift
        size = high * scale - shift - start
        size = size if static.aligned else jnp.maximum(size, 1.0)
        cell = _quotient(size, float(static.output_size))
        count = jnp.full_like(cell, static.sampling_ratio) if static.sampling_ratio else _pixels_of_cell(size, cell, static.output_size)
        return _Axis(start, cell, count)

    return axis(boxes[..., 1], boxes[..., 3]), axis(boxes[..., 0], boxes[..., 2])


def _pixels_of_cell(size: Array, cell: Array, cells: int) -> Array:
    """`ceil(size / cells)`, at least 0, where `cell` is the quotient within a rounding or two: 21 by 7 has to be 3 on GPUs, too."""
    count = jnp.ceil(cell)
    count = count - ((count - 1.0) * cells >= size) + (count * cells < size)
    return jnp.maximum(count, 0.0)


def _quotient(a: Array, b: Array | float) -> Array:
    """`a / b` with the one rounding of a division; by a constant XLA would multiply with the rounded reciprocal.

    On GPUs XLA's division may be wrong in the last bit or two.
    """
    return a / jnp.where(jnp.isnan(a), jnp.nan, b)


def _sample(axis: _Axis, cells: Array, index: Array) -> Array:
    """Where the sample `index` of each cell lies, in pixels of the level; rounded where the originals round, to the last bit."""
    return axis.start + rounded(cells * axis.cell) + _quotient((index + 0.5) * axis.cell, jnp.maximum(axis.samples, 1.0))


def _is_near(position: Array, length: Array | int) -> Array:
    """Whether a sample counts: it lies in the level or up to a pixel outside."""
    return (position >= -1.0) & (position <= length)


# Adaptive samples lie more than half a pixel apart, so at most 4 are within a pixel of a given one; 2 more for rounding.
_NEIGHBORS = 6


def _weights(static: _Static, axis: _Axis, pixels: Array, length: Array | int) -> Array:
    """Mean weight of each pixel in the cells of each RoI: `[*n, P, K]` for entries `[*n]` and pixels `[*n, K]` or `[K]`.

    The level's length is one for all, or `[*n, 1, 1]`.
    """
    axis = jax.tree.map(lambda value: value[..., None, None], axis)
    pixels = pixels[..., None, :].astype(jnp.float32)
    cells = jnp.arange(static.output_size, dtype=jnp.float32)[:, None]
    if static.sampling_ratio:
        indices = [jnp.float32(i) for i in range(static.sampling_ratio)]
    else:
        # A single sample may stand for a cell of less than half a pixel: its index is found with a larger step as well.
        step = jnp.maximum(axis.cell / jnp.maximum(axis.samples, 1.0), 0.5)
        first = jnp.floor((pixels - 1.0 - axis.start - cells * axis.cell) / step - 0.5)
        indices = [first + i for i in range(_NEIGHBORS)]
    total = jnp.float32(0.0)
    for index in indices:
        position = _sample(axis, cells, index)
        counts = _is_near(position, length) & (index >= 0) & (index < axis.samples)
        taps = jnp.maximum(1.0 - jnp.abs(jnp.clip(position, 0.0, length - 1.0) - pixels), 0.0)
        total += jnp.where(counts, taps, 0.0)
    return total / jnp.maximum(axis.samples, 1.0)


# Products of rounded weights would cost more accuracy than they save time.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


class _Taps(NamedTuple):
    """The pixels that samples along one axis touch, two a sample, `[*n, P, 2 * samples]`; weights have the mean in them."""

    pixels: Array
    weights: Array


def _taps(static: _Static, axis: _Axis, length: Array) -> _Taps:
    axis = jax.tree.map(lambda value: value[..., None, None], axis)
    length = length[..., None, None]
    cells = jnp.arange(static.output_size, dtype=jnp.float32)[:, None]
    position = _sample(axis, cells, jnp.arange(static.sampling_ratio, dtype=jnp.float32))
    share = jnp.where(_is_near(position, length), 1.0 / static.sampling_ratio, 0.0)
    position = jnp.clip(position, 0.0, length - 1.0)
    low = jnp.floor(position)
    high = jnp.minimum(low + 1.0, length - 1.0)
    pixels = jnp.concatenate([low, high], -1).astype(jnp.int32)
    return _Taps(pixels, jnp.concatenate([share * (1.0 - (position - low)), share * (position - low)], -1))


def _lengths(static: _Static, levels: Array) -> tuple[Array, Array]:
    """Height and width of the level of each RoI."""
    heights, widths = (jnp.asarray(side, jnp.int32)[levels] for side in zip(*static.sizes, strict=True))
    return heights, widths


def _gather_terms(static: _Static, boxes: Array, levels: Array) -> tuple[list[Array], list[Array]]:
    """Rows of a table of all pixels of all levels of one image, and their weights, `[R, P, P]` each; their products add up."""
    heights, widths = _lengths(static, levels)
    areas = [height * width for height, width in static.sizes]
    base = jnp.asarray([sum(areas[:level]) for level in range(len(areas))], jnp.int32)[levels]
    y_axis, x_axis = _axes(static, boxes, levels)
    y, x = _taps(static, y_axis, heights), _taps(static, x_axis, widths)
    rows, weights = [], []
    for i in range(2 * static.sampling_ratio):
        for j in range(2 * static.sampling_ratio):
            in_level = y.pixels[:, :, None, i] * widths[:, None, None] + x.pixels[:, None, :, j]
            rows.append(base[:, None, None] + in_level)
            weights.append(y.weights[:, :, None, i] * x.weights[:, None, :, j])
    return rows, weights


def _gather_pool(static: _Static, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    def image(features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
        table = jnp.concatenate([feature.reshape(-1, feature.shape[-1]) for feature in features])
        total = jnp.float32(0.0)
        for row, weight in zip(*_gather_terms(static, boxes, levels), strict=True):
            total += table[row].astype(jnp.float32) * weight[..., None]
        return total

    return jax.vmap(image)(features, boxes, levels)


def _gather_spread(static: _Static, gradient: Array, boxes: Array, levels: Array) -> list[Array]:
    channels = gradient.shape[-1]
    areas = [height * width for height, width in static.sizes]

    def image(gradient: Array, boxes: Array, levels: Array) -> Array:
        # One table for all terms: the sum of a table for each would be most of the work.
        table = jnp.zeros((sum(areas), channels), jnp.float32)
        for row, weight in zip(*_gather_terms(static, boxes, levels), strict=True):
            table = table.at[row].add(gradient.astype(jnp.float32) * weight[..., None])
        return table

    table = jax.vmap(image)(gradient, boxes, levels)
    parts = jnp.split(table, [sum(areas[:level]) for level in range(1, len(areas))], 1)
    return [part.reshape(-1, *size, channels) for part, size in zip(parts, static.sizes, strict=True)]


# Bytes that the products with one level may hold between the first and the second.
_MATMUL_BYTES = 2**28


def _matmul_pool(static: _Static, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    channels = features[0].shape[-1]
    largest = static.output_size * max(width for _, width in static.sizes) * channels * 4

    def image(features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
        def roi(box: Array, own_level: Array) -> Array:
            y_axis, x_axis = _axes(static, box, own_level)
            total = jnp.float32(0.0)
            for level, (feature, (height, width)) in enumerate(zip(features, static.sizes, strict=True)):
                rows = jnp.where(own_level == level, _weights(static, y_axis, jnp.arange(height), height), 0.0)
                columns = _weights(static, x_axis, jnp.arange(width), width)
                total += _einsum("qw,pwc->pqc", columns, _einsum("ph,hwc->pwc", rows, feature))
            return total

        return jax.lax.map(lambda roi_arguments: roi(*roi_arguments), (boxes, levels), batch_size=max(1, _MATMUL_BYTES // largest))

    return jax.vmap(image)(features, boxes, levels)


def _matmul_spread(static: _Static, gradient: Array, boxes: Array, levels: Array) -> list[Array]:
    shapes = tuple(jax.ShapeDtypeStruct((len(boxes), *size, gradient.shape[-1]), jnp.float32) for size in static.sizes)
    (gradients,) = jax.linear_transpose(lambda features: _matmul_pool(static, features, boxes, levels), shapes)(
        gradient.astype(jnp.float32)
    )
    return list(gradients)


# Rows and columns of pixels that the loop cuts from a level at a time. RoIs of a pyramid are seldom more than 28 wide.
_WINDOW = (12, 24)


class _Window(NamedTuple):
    """A part of the pixels under one RoI: the row of the RoI, the window's corner (image, y, x, channel), its pixels' weights."""

    roi: Array
    corner: tuple[Array | int, ...]
    rows: Array
    columns: Array


class _Extent(NamedTuple):
    """The pixels that each RoI touches along one axis: the first, and how many."""

    first: Array
    size: Array


def _extent(static: _Static, axis: _Axis, length: int) -> _Extent:
    end = axis.start + axis.cell * static.output_size
    first = jnp.floor(jnp.clip(jnp.minimum(axis.start, end), 0, length - 1)).astype(jnp.int32)
    last = jnp.floor(jnp.clip(jnp.maximum(axis.start, end), 0, length - 1)).astype(jnp.int32) + 1
    return _Extent(first, jnp.minimum(last, length - 1) - first + 1)


def _fold_windows(static: _Static, level: int, boxes: Array, levels: Array, step: Callable[[Array, _Window], Array], carry: Array) -> Array:
    """`step` over the windows that cover the RoIs of one level, one after the other."""
    if not levels.size:
        return carry
    rois_per_image = boxes.shape[1]
    boxes, levels = boxes.reshape(-1, 4), levels.reshape(-1)
    axes, lengths = _axes(static, boxes, levels), static.sizes[level]
    sides = tuple(min(side, length) for side, length in zip(_WINDOW, lengths, strict=True))
    extents = tuple(_extent(static, axis, length) for axis, length in zip(axes, lengths, strict=True))
    tiles = tuple(-(-extent.size // side) for extent, side in zip(extents, sides, strict=True))
    (rois,) = jnp.nonzero(levels == level, size=len(boxes), fill_value=0)
    count = (levels == level).sum()

    def visit(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        position, tile, carry = state
        roi = rois[position]
        corner: list[Array] = []
        weights: list[Array] = []
        for axis, extent, length, side, index in zip(axes, extents, lengths, sides, jnp.divmod(tile, tiles[1][roi]), strict=True):
            first = extent.first[roi] + index * side
            # At the border the window moves back, over pixels that an earlier one may have had.
            corner.append(jnp.minimum(first, length - side))
            pixels = corner[-1] + jnp.arange(side)
            own = jax.tree.map(lambda values: values[roi], axis)
            weights.append(jnp.where(pixels >= first, _weights(static, own, pixels, length), 0.0))
        carry = step(carry, _Window(roi, (roi // rois_per_image, *corner, 0), *weights))
        done = tile + 1 == tiles[0][roi] * tiles[1][roi]
        return jnp.where(done, position + 1, position), jnp.where(done, 0, tile + 1), carry

    return jax.lax.while_loop(lambda state: state[0] < count, visit, (jnp.int32(0), jnp.int32(0), carry))[2]


def _for_each_row(window: _Window) -> Array:
    """The columns' weights repeated for the rows of pixels: a batched product keeps the layout that a plain one transposes."""
    return jnp.broadcast_to(window.columns, (window.rows.shape[-1], *window.columns.shape))


def _window_pool(static: _Static, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    channels, cells = features[0].shape[-1], static.output_size
    output = jnp.zeros((levels.size, cells, cells, channels), jnp.float32)
    for level, feature in enumerate(features):

        def pool(output: Array, window: _Window, feature: Array = feature) -> Array:
            shape = (1, window.rows.shape[-1], window.columns.shape[-1], channels)
            pixels = jax.lax.dynamic_slice(feature, window.corner, shape)[0].astype(jnp.float32)
            pooled = _einsum("ph,hqc->pqc", window.rows, _einsum("hqw,hwc->hqc", _for_each_row(window), pixels))
            own = jax.lax.dynamic_index_in_dim(output, window.roi, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(output, own + pooled, window.roi, 0)

        output = _fold_windows(static, level, boxes, levels, pool, output)
    return output.reshape(*levels.shape, cells, cells, channels)


def _window_spread(static: _Static, gradient: Array, boxes: Array, levels: Array) -> list[Array]:
    flat = gradient.reshape(-1, *gradient.shape[2:])
    gradients = []
    for level, size in enumerate(static.sizes):

        def spread(total: Array, window: _Window) -> Array:
            own = jax.lax.dynamic_index_in_dim(flat, window.roi, keepdims=False).astype(jnp.float32)
            pixels = _einsum("hqw,hqc->hwc", _for_each_row(window), _einsum("ph,pqc->hqc", window.rows, own))[None]
            return jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, window.corner, pixels.shape) + pixels, window.corner)

        zeros = jnp.zeros((len(boxes), *size, gradient.shape[-1]), jnp.float32)
        gradients.append(_fold_windows(static, level, boxes, levels, spread, zeros))
    return gradients


_POOL = {"gather": _gather_pool, "matmul": _matmul_pool, "window": _window_pool}
_SPREAD = {"gather": _gather_spread, "matmul": _matmul_spread, "window": _window_spread}


# Up to so many samples a side the kernel has each tap written out; of more, it sums pixels instead.
_WRITTEN_OUT = 2


def _obstacle(array: Array) -> str | None:
    """Why the kernel cannot take it, features or their cells' gradient; None where it can."""
    if array.dtype not in (jnp.float32, jnp.bfloat16):
        return f"features are {array.dtype}, and it takes float32 and bfloat16"
    if array.shape[-1] % kernels.LANES:
        return f"{array.shape[-1]} channels are no multiple of {kernels.LANES}"
    return None


def _weights_of_own_level(static: _Static, boxes: Array, levels: Array) -> tuple[Array, Array]:
    """Rows `[B, R, P, H]` and columns `[B, R, P, W]` of weights in the level of each RoI, and zeros up to the largest level."""
    rows, columns = (
        _weights(static, axis, jnp.arange(max(sides)), lengths[..., None, None])
        for axis, sides, lengths in zip(
            _axes(static, boxes, levels), zip(*static.sizes, strict=True), _lengths(static, levels), strict=True
        )
    )
    return rows, columns


def _kernel_pool(static: _Static, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    if not 0 < static.sampling_ratio <= _WRITTEN_OUT:
        return kernels.pool_pixels(features, levels, *_weights_of_own_level(static, boxes, levels))
    axes, lengths = _axes(static, boxes, levels), _lengths(static, levels)
    return kernels.pool_samples(features, levels, *(_taps(static, axis, length) for axis, length in zip(axes, lengths, strict=True)))


def _kernel_spread(static: _Static, gradient: Array, boxes: Array, levels: Array) -> tuple[Array, ...]:
    return kernels.spread(gradient, levels, *_weights_of_own_level(static, boxes, levels), static.sizes)
