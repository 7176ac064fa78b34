"""Deformable convolution, beside dbolya/yolact's extension and a loop over windows in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import functions

from jaxseg.ops.deform_conv import FORMS, deform_conv


@pytest.mark.parametrize("case", range(4))
def test_the_originals_values(case):
    """The cases are strides of 1 and 2, a dilation of 2, and offsets that leave the map."""
    g = {name.removeprefix(f"case{case}_"): value for name, value in functions("dcn").items() if name.startswith(f"case{case}_")}
    stride, dilation = g["stride_dil"].tolist()
    x, offset, mask, expected = (np.moveaxis(g[name], 1, -1) for name in ("x", "offset", "mask", "out"))
    convolve = jax.jit(functools.partial(deform_conv, stride=stride, padding=dilation, dilation=dilation))
    np.testing.assert_allclose(convolve(x, offset, g["weight"].transpose(2, 3, 1, 0), mask) + g["bias"], expected, atol=1e-5)


def loop(x, offset, kernel, factors, gradient, *, stride, padding, dilation):
    """Returns the result and, for a gradient of the result, those of all operands, in float64."""
    size, (taps_y, taps_x, inputs, outputs) = x.shape[1:3], kernel.shape
    taps, channels = taps_y * taps_x, x.shape[3]
    groups, offset_groups = channels // inputs, offset.shape[3] // (2 * taps)
    result = np.zeros(gradient.shape)
    gradients = [np.zeros(operand.shape) for operand in (x, offset, kernel, factors)]
    of_x, of_offset, of_kernel, of_factors = gradients
    for b, i, j, tap, channel in itertools.product(*map(range, (*gradient.shape[:3], taps, channels))):
        row, column = divmod(tap, taps_x)
        place = (channel * offset_groups // channels) * taps + tap
        y = i * stride - padding + row * dilation + offset[b, i, j, 2 * place]
        left = j * stride - padding + column * dilation + offset[b, i, j, 2 * place + 1]
        if not (-1 < y < size[0] and -1 < left < size[1]):
            continue
        group = channel * groups // channels
        part = slice(group * outputs // groups, (group + 1) * outputs // groups)
        weights = kernel[row, column, channel % inputs, part]
        pull = weights @ gradient[b, i, j, part]
        factor = factors[b, i, j, place]
        value = 0.0
        for below, right in itertools.product((0, 1), (0, 1)):
            pixel = (int(np.floor(y)) + below, int(np.floor(left)) + right)
            if not (0 <= pixel[0] < size[0] and 0 <= pixel[1] < size[1]):
                continue
            share_y, share_x = 1 - abs(y - pixel[0]), 1 - abs(left - pixel[1])
            content = x[b, *pixel, channel]
            value += share_y * share_x * content
            of_x[b, *pixel, channel] += share_y * share_x * factor * pull
            of_offset[b, i, j, 2 * place] += (2 * below - 1) * share_x * content * factor * pull
            of_offset[b, i, j, 2 * place + 1] += (2 * right - 1) * share_y * content * factor * pull
        result[b, i, j, part] += factor * value * weights
        of_kernel[row, column, channel % inputs, part] += factor * value * gradient[b, i, j, part]
        of_factors[b, i, j, place] += value * pull
    return result, gradients


@functools.cache
def example(stride, dilation, offset_groups, groups, taps=(3, 3)):
    """Makes operands and the loop's results; some offsets are whole, and some leave the map."""
    rng = np.random.default_rng(0)
    size, channels, outputs, padding = (7, 6), 4, 4, dilation
    windows = [(side + 2 * padding - dilation * (length - 1) - 1) // stride + 1 for side, length in zip(size, taps, strict=True)]
    places = offset_groups * taps[0] * taps[1]
    offset = rng.normal(0, 2, (2, *windows, 2 * places))
    offset[0, 0], offset[0, 1], offset[1, 0] = 0, 1, 20 * offset[1, 0]
    operands = [
        rng.normal(size=(2, *size, channels)),
        offset,
        rng.normal(size=(*taps, channels // groups, outputs)),
        rng.uniform(size=(2, *windows, places)),
    ]
    operands = [operand.astype(np.float32) for operand in operands]
    gradient = rng.normal(size=(2, *windows, outputs)).astype(np.float32)
    rule = {"stride": stride, "padding": padding, "dilation": dilation}
    return operands, gradient, rule, loop(*(operand.astype(np.float64) for operand in operands), gradient.astype(np.float64), **rule)


CASES = {
    "plain": (1, 1, 1, 1),
    "stride": (2, 1, 1, 1),
    "dilation": (1, 2, 1, 1),
    "offset groups": (2, 2, 2, 1),
    "groups": (1, 1, 2, 4),
    "oblong kernel": (1, 1, 1, 1, (3, 1)),
}


SHORT = (("plain", "gather"), ("dilation", "gather"), ("offset groups", "gather"), ("groups", "gather"), ("offset groups", "matmul"))


@pytest.mark.parametrize(
    ("case", "form"),
    [pytest.param(*pair, marks=[] if pair in SHORT else pytest.mark.slow) for pair in itertools.product(CASES, FORMS)],
)
def test_a_loop_over_windows(case, form):
    """Values agree within 1e-5, and the gradients of all operands within 1e-4 of the largest."""
    operands, gradient, rule, (expected, gradients) = example(*CASES[case])

    @jax.jit
    def both(gradient, *operands):
        result, pull_back = jax.vjp(functools.partial(deform_conv, form=form, **rule), *operands)
        return result, pull_back(gradient)

    result, ours = both(gradient, *operands)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    for one, other in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_without_modulation_all_factors_are_one():
    operands, _, rule, _ = example(*CASES["offset groups"])
    version1 = jax.jit(functools.partial(deform_conv, **rule))
    np.testing.assert_array_equal(version1(*operands[:3]), version1(*operands[:3], np.ones_like(operands[3])))


@pytest.mark.parametrize("form", FORMS)
def test_points_far_outside_or_undefined_have_no_value_and_no_gradient(form):
    operands, _, rule, _ = example(*CASES["plain"])
    offset = np.full_like(operands[1], np.nan)
    offset[0] = 1e30

    def total(*operands):
        return deform_conv(*operands, form=form, **rule).sum()

    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(operands[0], offset, *operands[2:])
    assert value == 0
    assert all((np.asarray(gradient) == 0).all() for gradient in gradients)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_summed_in_float32(form):
    operands, _, rule, (expected, _) = example(*CASES["plain"])
    x, offset, kernel, factors = operands
    result = jax.jit(functools.partial(deform_conv, form=form, **rule))(jnp.bfloat16(x), offset, kernel, factors)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(np.float32), expected, atol=2e-2 * np.abs(expected).max())


@pytest.mark.parametrize("form", [FORMS[0], pytest.param(FORMS[1], marks=pytest.mark.slow)])
def test_the_gradient_takes_the_memory_of_a_few_inputs(form):
    shape = (1, 48, 48, 256)
    operands = [jax.ShapeDtypeStruct(sides, jnp.float32) for sides in (shape, (1, 48, 48, 18), (3, 3, 256, 256), (1, 48, 48, 9))]

    def total(*operands):
        return deform_conv(*operands, padding=1, form=form).sum()

    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3))).lower(*operands).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < {"gather": 7, "matmul": 12}[form] * 4 * np.prod(shape)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({1: (2, 7, 6, 17)}, "shape of the offsets"),
        ({1: (2, 7, 5, 18), 3: (2, 7, 5, 9)}, "7 x 6 windows"),
        ({3: (2, 7, 6, 8)}, "shape of the modulation"),
        ({2: (3, 3, 3, 4)}, "into groups"),
    ],
)
def test_operands_that_do_not_fit_are_refused(changed, message):
    shapes = [(2, 7, 6, 4), (2, 7, 6, 18), (3, 3, 4, 4), (2, 7, 6, 9)]
    operands = [jnp.zeros(changed.get(i, shape)) for i, shape in enumerate(shapes)]
    with pytest.raises(ValueError, match=message):
        deform_conv(*operands, padding=1)


def test_an_unknown_form_is_refused():
    operands, _, rule, _ = example(*CASES["plain"])
    with pytest.raises(ValueError, match="'window' is not one of gather, matmul"):
        jax.eval_shape(functools.partial(deform_conv, form="window", **rule), *operands)
