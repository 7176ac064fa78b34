"""Deformable convolution: the call, its gradient, and the choice of the form that samples."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32

from jaxseg.devices import platform
from jaxseg.ops.deform_conv import gather, matmul
from jaxseg.ops.deform_conv.sampling import Corners, Geometry, corners

Form = Literal["gather", "matmul"]
FORMS: tuple[Form, ...] = get_args(Form)
# On TPUs, products are the faster form for maps of at most this many values, by XLA's own estimate
# (see docs/benchmarks.md): their cost per point grows with the map, that of reading pixels does not.
LARGEST_PRODUCT = 640_000
_MODULES: dict[Form, ModuleType] = {"gather": gather, "matmul": matmul}


class _Plan(NamedTuple):
    """The geometry of a call, the groups of the convolution, and the form that samples."""

    geometry: Geometry
    groups: int
    form: Form


def deform_conv(
    images: Float[Array, "B H W C"],
    offsets: Float[Array, "B h w _"],
    kernel: Float[Array, "kh kw c F"],
    modulation: Float[Array, "B h w _"] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    form: str | None = None,
) -> Float[Array, "B h w F"]:
    """Applies a deformable convolution (arXiv:1703.06211; with modulation arXiv:1811.11168).

    Each tap of the kernel reads the input at a displaced point, bilinearly; pixels outside of the
    input count as 0. The numbers are those of torchvision's `deform_conv2d`, of mmcv's and
    detectron2's `ModulatedDeformConv`, and of the extension of dbolya/yolact. Points that are a
    pixel or more outside of the input have no gradient, as in all of these but torchvision, where a
    point exactly one pixel outside has one.

    The memory is that of a few inputs, in the gradient, too, because the taps are computed one
    after the other and their samples are not kept.

    Args:
        images: the input.
        offsets: the displacements in pixels of the input, with `G * kh * kw * 2` channels: for each
            of `G` groups of input channels and each tap, row by row, first y, then x.
        kernel: the weights, in which `c` times the number of groups of the convolution is `C`.
        modulation: the factors of the samples, with `G * kh * kw` channels in the same order; all
            are 1 if None. (A sigmoid has been applied to them.)
        stride: the distance of neighbouring windows, one for both axes or along y and x.
        padding: the number of pixels by which the windows reach beyond the input on every side.
        dilation: the distance of neighbouring taps.
        form: the way of sampling, of `FORMS`; None selects the best one for the platform.

    Raises:
        ValueError: the shapes do not fit together, or the form does not exist.
    """
    geometry = _geometry(images.shape, kernel.shape, _pair(stride), _pair(padding), _pair(dilation))
    taps, channels = kernel.shape[0] * kernel.shape[1], images.shape[3]
    offset_groups, groups = offsets.shape[3] // (2 * taps), channels // kernel.shape[2]
    factors = jnp.ones((*offsets.shape[:3], offset_groups * taps)) if modulation is None else modulation
    expected = {
        "offsets": (offsets.shape, (*geometry.output_size, offset_groups * taps * 2)),
        "modulation": (factors.shape, (*geometry.output_size, offset_groups * taps)),
    }
    for name, (shape, right) in expected.items():
        if shape[1:] != right or not offset_groups or channels % offset_groups:
            raise ValueError(
                f"The shape of the {name}, {list(shape)}, does not fit {geometry.output_size[0]} x {geometry.output_size[1]} "
                f"windows, {kernel.shape[0]} x {kernel.shape[1]} taps and {channels} channels."
            )
    if kernel.shape[2] * groups != channels or kernel.shape[3] % groups:
        raise ValueError(f"A kernel of the shape {list(kernel.shape)} does not divide {channels} channels into groups.")
    best = default_form(geometry.pixels * channels // offset_groups)
    chosen = best if form is None else next((known for known in FORMS if known == form), None)
    if chosen is None:
        raise ValueError(f"The form {form!r} is not one of {', '.join(FORMS)}.")
    plan = _Plan(geometry, groups, chosen)

    def by_tap(values: Array, *trailing: int) -> Array:
        """Moves the taps to the front: `[K, B, G, P, ...]`."""
        values = values.reshape(len(images), -1, offset_groups, taps, *trailing)
        return jnp.moveaxis(values.astype(jnp.float32), 3, 0).swapaxes(2, 3)

    maps = images.reshape(len(images), geometry.pixels, offset_groups, -1).swapaxes(1, 2)
    weights = kernel.astype(images.dtype).reshape(taps, *kernel.shape[2:])
    result = _convolve(plan, maps, by_tap(offsets, 2), by_tap(factors), weights)
    return result.astype(images.dtype).reshape(len(images), *geometry.output_size, -1)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _geometry(
    images: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Geometry:
    """Returns the geometry for the shapes of the images and the kernel."""
    height, width = (
        (images[1 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1 for axis in (0, 1)
    )
    return Geometry((images[1], images[2]), (kernel[0], kernel[1]), (height, width), stride, padding, dilation)


def default_form(size: int) -> Form:
    """Chooses the form by a rule for the platform of the program.

    Args:
        size: the number of values of a map, which is its pixels times its channels.
    """
    return "matmul" if platform() == "tpu" and size <= LARGEST_PRODUCT else "gather"


# Maps are [B, G, N, c]: for each image and group of channels with the same offsets, rows of pixels.
# The scans run over the taps.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(plan: _Plan, maps: Array, offsets: Array, modulation: Array, kernel: Array) -> Float32[Array, "B P F"]:
    def add(total: Array, tap: tuple[Array, ...]) -> tuple[Array, None]:
        y, x, offset, factor, weights = tap
        samples = _sample(plan, maps, _corners(plan, y, x, offset)) * factor[..., None]
        return total + jax.vmap(functools.partial(_apply, plan, weights))(samples.astype(maps.dtype)), None

    points = offsets.shape[3]
    total = jnp.zeros((len(maps), points, kernel.shape[-1]), jnp.float32)
    return jax.lax.scan(add, total, (*_taps(plan), offsets, modulation, kernel))[0]


def _convolve_forward(plan: _Plan, *operands: Array) -> tuple[Array, tuple[Array, ...]]:
    return _convolve(plan, *operands), operands


def _convolve_backward(plan: _Plan, operands: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    maps, offsets, modulation, kernel = operands
    module, pixels = _MODULES[plan.form], plan.geometry.pixels

    def add(total: Array, tap: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        y, x, offset, factor, weights = tap
        around = _corners(plan, y, x, offset)
        samples = (_sample(plan, maps, around) * factor[..., None]).astype(maps.dtype)

        def image(samples: Array, gradient: Array) -> tuple[Array, Array]:
            of_weights, per_sample = jax.vjp(functools.partial(_apply, plan), weights, samples)[1](gradient)
            return of_weights, per_sample

        of_weights, per_sample = jax.vmap(image)(samples, gradient)
        products = _each_map(module.products)(maps, around, per_sample)
        total += _each_map(functools.partial(module.spread, count=pixels))(around, (per_sample * factor[..., None]).astype(maps.dtype))
        of_factor = (around.weights * products).sum(-1)
        of_offset = jnp.stack([(around.slopes_y * products).sum(-1), (around.slopes_x * products).sum(-1)], -1) * factor[..., None]
        return total, (of_offset, of_factor, of_weights)

    total, (of_offsets, of_modulation, of_weights) = jax.lax.scan(
        add, jnp.zeros(maps.shape, jnp.float32), (*_taps(plan), offsets, modulation, kernel)
    )
    # The sum over images is outside of the loop, where devices would have to wait for each other.
    of_kernel = of_weights.astype(jnp.float32).sum(1).astype(kernel.dtype)
    return total.astype(maps.dtype), of_offsets, of_modulation, of_kernel


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _taps(plan: _Plan) -> tuple[Array, Array]:
    y, x = plan.geometry.taps()
    return jnp.asarray(y), jnp.asarray(x)


def _corners(plan: _Plan, y: Array, x: Array, offset: Array) -> Corners:
    # XLA would compute the corners again for each channel that reads them.
    around: Corners = jax.lax.optimization_barrier(corners(plan.geometry, y + offset[..., 0], x + offset[..., 1]))
    return around


def _sample(plan: _Plan, maps: Array, around: Corners) -> Array:
    """Returns the samples of one tap, float32 `[B, G, P, c]`."""
    samples: Array = _each_map(_MODULES[plan.form].sample)(maps, around)
    return samples


def _each_map(function: Callable[..., Array]) -> Callable[..., Array]:
    """Maps a function of one map over images and groups of channels."""
    return jax.vmap(jax.vmap(function))


def _apply(plan: _Plan, weights: Array, samples: Array) -> Array:
    """Multiplies the samples `[G, P, c]` of one tap and image by its weights `[c, F]`."""
    samples = samples.swapaxes(0, 1).reshape(samples.shape[1], -1)
    groups = zip(jnp.split(samples, plan.groups, -1), jnp.split(weights, plan.groups, -1), strict=True)
    product = functools.partial(jnp.einsum, "pc,cf->pf", preferred_element_type=jnp.float32)
    return jnp.concatenate([product(*group) for group in groups], -1)
