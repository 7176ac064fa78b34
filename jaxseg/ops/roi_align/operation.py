"""RoIAlign: the call, its gradient, and the choice of the code that computes both."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Float32, Int32

from jaxseg.ops.implementation import NAMES, ImplementationError, dispatch, named
from jaxseg.ops.roi_align import gather, kernel, matmul, window
from jaxseg.ops.roi_align.bilinear import Geometry
from jaxseg.ops.roi_align.choice import FORMS, Form, Forms, default_forms

Features = tuple[Array, ...]

POOL: dict[Form, Callable[[Geometry, Features, Array, Array], Array]] = {
    "gather": gather.pool,
    "matmul": matmul.pool,
    "window": window.pool,
}
SPREAD: dict[Form, Callable[[Geometry, Array, Array, Array], Features]] = {
    "gather": gather.spread,
    "matmul": matmul.spread,
    "window": window.spread,
}


class _Plan(NamedTuple):
    """The geometry of a call, the implementation for `dispatch`, and the plain forms."""

    geometry: Geometry
    implementation: str | None
    forms: Forms


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
    """Applies RoIAlign (arXiv:1703.06870, section 3) as in maskrcnn-benchmark, detectron2 and mmcv.

    A box is divided into `output_size` x `output_size` cells, and each cell gets the mean of its
    bilinear samples. Samples that are more than a pixel outside of the level count as 0; nearer
    ones have the value at the border. Sums are float32 for any type of the features. Gradients flow
    to the features only.

    Args:
        features: the levels of the pyramid, the finest first.
        boxes: `x1, y1, x2, y2` in pixels of the network's input. For boxes without area see
            `aligned`.
        levels: the index of the level from which each box is pooled.
        strides: the pixels of the input per pixel of each level.
        output_size: the number of cells per side.
        sampling_ratio: the number of samples per cell and side; 0 takes as many as a cell has
            pixels, rounded up.
        aligned: whether boxes are shifted by half a pixel, so that samples refer to the centres of
            pixels (detectron2, mmdetection). The result for a box without area is then 0 if
            sampling is adaptive. Without the shift, boxes are at least one pixel of the level wide
            and high (maskrcnn-benchmark, torchvision).
        implementation: the name of an implementation (see `jaxseg.ops.implementation`), or a form
            of plain JAX. The kernel supports float32 and bfloat16, and multiples of 128 channels.

    Raises:
        ValueError: there are not as many strides as levels.
        ImplementationError: the implementation does not exist or does not support this call.
    """
    if len(features) != len(strides):
        raise ValueError(f"{len(features)} levels but {len(strides)} strides.")
    if implementation not in (None, *NAMES, *FORMS):
        raise ImplementationError(f"RoIAlign's implementation {implementation!r} is not one of {', '.join((*NAMES, *FORMS))}.")
    if implementation == "gather" and not sampling_ratio:
        raise ImplementationError('implementation "gather" needs a fixed sampling_ratio; adaptive sampling (0) has "matmul" and "window".')
    sizes = tuple((feature.shape[1], feature.shape[2]) for feature in features)
    geometry = Geometry(sizes, tuple(strides), output_size, sampling_ratio=sampling_ratio, aligned=aligned)
    form = next((form for form in FORMS if form == implementation), None)
    if form is not None:
        plan = _Plan(geometry, "xla", Forms(form, form))
    else:
        # Without RoIs there is no kernel to launch.
        plan = _Plan(geometry, named(implementation) if boxes.size else "xla", default_forms(geometry, boxes.shape[1]))
    return _align(plan, tuple(features), boxes, levels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _align(plan: _Plan, features: Features, boxes: Array, levels: Array) -> Array:
    def plain(features: Features, boxes: Array, levels: Array) -> Array:
        return POOL[plan.forms.alone](plan.geometry, features, boxes, levels).astype(features[0].dtype)

    by_kernel = functools.partial(kernel.pool, plan.geometry)
    return dispatch(plan.implementation, features, boxes, levels, kernel=by_kernel, plain=plain, obstacle=kernel.obstacle(features[0]))


def _align_forward(plan: _Plan, features: Features, boxes: Array, levels: Array) -> tuple[Array, tuple[Array, Array]]:
    plan = plan._replace(forms=plan.forms._replace(alone=plan.forms.with_gradient))
    # The result is linear in the features, so the gradient does not need them again.
    return _align(plan, features, boxes, levels), (boxes, levels)


def _align_backward(plan: _Plan, rois: tuple[Array, Array], gradient: Array) -> tuple[Features, None, None]:
    def plain(gradient: Array, boxes: Array, levels: Array) -> Features:
        gradients = SPREAD[plan.forms.with_gradient](plan.geometry, gradient, boxes, levels)
        return tuple(level.astype(gradient.dtype) for level in gradients)

    by_kernel = functools.partial(kernel.spread, plan.geometry)
    return dispatch(plan.implementation, gradient, *rois, kernel=by_kernel, plain=plain, obstacle=kernel.obstacle(gradient)), None, None


_align.defvjp(_align_forward, _align_backward)
