"""RoIAlign over a feature pyramid: the level of each box, and bilinear samples averaged in the cells of a grid.

Sampling and averaging are separable: the result is `rows @ features @ columns^T`, where `rows [P, h]` holds the mean
bilinear weights of each cell's samples, whatever their number. Three forms with the same results build on that:

- "gather": adds up the pixels around each sample. Needs a fixed number of samples; keeps images of a batch apart, so that
  a batch spread over devices stays there.
- "matmul": two matrix products with whole levels. The cost grows with the levels' area, not with the samples.
- "window": a loop over RoIs, two small products with the pixels under each. The least arithmetic and no scatter, but
  sequential, and across all images: for one CPU.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from jaxseg.ops.boxes import box_area
from jaxseg.structures import AnyArray

Implementation = Literal["gather", "matmul", "window"]

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
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(side / CANONICAL_SIDE + ratio_epsilon) + level_epsilon)
    return jnp.clip(level, finest, coarsest).astype(jnp.int32)


class _Sampling(NamedTuple):
    """What is static: pixels of the input per pixel of each level, cells per side, samples per cell and side, half-pixel shift."""

    strides: tuple[int, ...]
    output_size: int
    sampling_ratio: int
    aligned: bool


class _Axis(NamedTuple):
    """Samples along y or x: where the RoI starts, the size of its cells (both in pixels of the level), and samples per cell."""

    start: Array
    cell: Array
    count: Array


def roi_align(
    features: Sequence[Float[Array, "B _ _ C"]],
    boxes: Float32[Array, "B R 4"],
    levels: Int32[Array, "B R"],
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    implementation: Implementation | None = None,
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
        implementation: see the module; None chooses by platform.

    Raises:
        ValueError: when there are not as many strides as levels, or the implementation cannot do this.
    """
    if len(features) != len(strides):
        raise ValueError(f"{len(features)} levels but {len(strides)} strides.")
    sampling = _Sampling(tuple(strides), output_size, sampling_ratio, aligned)
    implementation = implementation or _default(sampling)
    if implementation == "gather" and not sampling_ratio:
        raise ValueError('implementation "gather" needs a fixed sampling_ratio; adaptive sampling (0) has "matmul" and "window".')
    if implementation not in _FORMS:
        raise ValueError(f'implementation "{implementation}" is none of {", ".join(_FORMS)}.')
    return _align(implementation, sampling, tuple(features), boxes, levels)


def _default(sampling: _Sampling) -> Implementation:
    """The form for this process.

    One CPU device: the loop. Otherwise a batch may be spread over devices, which the loop would undo: the gather where samples
    are fixed, else the products, whose cost is the same for any number of samples.
    """
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        return "window"
    return "gather" if sampling.sampling_ratio else "matmul"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _align(implementation: Implementation, sampling: _Sampling, features: tuple[Array, ...], boxes: Array, levels: Array) -> Array:
    pool, _ = _FORMS[implementation]
    return pool(sampling, features, boxes, levels).astype(features[0].dtype)


def _align_forward(
    implementation: Implementation, sampling: _Sampling, features: tuple[Array, ...], boxes: Array, levels: Array
) -> tuple[Array, tuple]:
    # The result is linear in the features: their shapes are all the gradient needs.
    return _align(implementation, sampling, features, boxes, levels), ([jnp.empty((0, *f.shape)) for f in features], boxes, levels)


def _axes(sampling: _Sampling, boxes: Array, levels: Array) -> tuple[_Axis, _Axis]:
    """Samples along y and along x; entries `[*b, R]`."""
    scale = jnp.asarray([1.0 / stride for stride in sampling.strides], jnp.float32)[levels]
    axes = []
    for low, high in ((boxes[..., 1], boxes[..., 3]), (boxes[..., 0], boxes[..., 2])):
        start = low * scale - (0.5 if sampling.aligned else 0.0)
        size = high * scale - (0.5 if sampling.aligned else 0.0) - start
        if not sampling.aligned:
            size = jnp.maximum(size, 1.0)
        cell = size / sampling.output_size
        count = jnp.full(cell.shape, sampling.sampling_ratio) if sampling.sampling_ratio else jnp.ceil(cell)
        axes.append(_Axis(start, cell, jnp.maximum(count, 0.0).astype(jnp.float32)))
    return axes[0], axes[1]
