"""Convolutions and norms with the defaults of the originals."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.ops.deform_conv import deform_conv


def _pointwise(inputs: Array, kernel: Array, strides: Sequence[int], *_: Any, **__: Any) -> Array:
    """Computes a 1x1 convolution as a product of matrices.

    On CPUs, XLA computes its weight gradient several times as fast as that of a convolution.
    """
    return jnp.einsum("bhwc,cd->bhwd", inputs[:, :: strides[0], :: strides[1]], kernel[0, 0])


xavier_uniform = nn.initializers.xavier_uniform()
# PyTorch's `kaiming_uniform_(a=1)`, and its `kaiming_normal_(mode="fan_out", nonlinearity="relu")`.
kaiming_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    dilation: int = 1,
    padding: int | None = None,
    bias: bool = True,
    init: Callable[..., Array] = xavier_uniform,
    bias_init: Callable[..., Array] = nn.initializers.zeros,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> nn.Conv:
    """Makes a square convolution with the same padding on each side, as in PyTorch.

    Flax's "SAME" pads more on the right and below when the stride is 2. By default, the padding
    keeps the size if the stride is 1.
    """
    pad = dilation * (kernel - 1) // 2 if padding is None else padding
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=(dilation, dilation),
        use_bias=bias,
        dtype=dtype,
        kernel_init=init,
        bias_init=bias_init,
        conv_general_dilated=_pointwise if kernel == 1 else None,
        name=name,
    )


NormMode = Literal["train", "eval", "frozen"]


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's statistics.

    The running variance is the unbiased one, and a new value enters the running statistics with a
    weight of 0.1. Under jit over several devices, the statistics are those of the global batch.

    Attributes:
        mode: "train" uses the batch's statistics in training; "eval" uses the running statistics;
            "frozen" uses these, too, and its scale and bias have no gradient.
        epsilon: the number that is added to the variance.
        dtype: the type of the result; the arithmetic is float32.
    """

    mode: NormMode = "train"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(channels, jnp.float32))
        running_var = self.variable("batch_stats", "var", lambda: jnp.ones(channels, jnp.float32))
        if self.mode == "frozen":
            scale, bias = jax.lax.stop_gradient((scale, bias))
        if train and self.mode == "train":
            values = x.astype(jnp.float32)
            mean = values.mean((0, 1, 2))
            var = jnp.square(values - mean).mean((0, 1, 2))
            if not self.is_initializing():
                count = x.size // channels
                running_mean.value += 0.1 * (mean - running_mean.value)
                running_var.value += 0.1 * (var * (count / max(count - 1, 1)) - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(self.dtype)


class DeformableConv(nn.Module):
    """A 3x3 deformable convolution, whose offsets come from a convolution of the same input.

    The convolution `offset` yields the offsets, for each group and tap first y, then x, and after
    them the logits of the modulation. At the start all of these are 0, so that the layer is an
    ordinary convolution, times 1/2 if it is modulated.

    Attributes:
        features: the number of channels of the result.
        stride: the stride of both convolutions.
        dilation: the dilation of both convolutions.
        modulated: whether the samples are multiplied by a sigmoid (version 2).
        offset_groups: the number of groups of channels with offsets of their own.
        bias: whether the result has a bias.
        dtype: the type in which the convolutions compute.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    modulated: bool = True
    offset_groups: int = 1
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B H W C"]:
        values = 9 * self.offset_groups
        zeros = nn.initializers.zeros
        offset = conv(
            (3 if self.modulated else 2) * values, 3, self.stride, dilation=self.dilation, init=zeros, dtype=self.dtype, name="offset"
        )(x)
        offsets, logits = jnp.split(offset.astype(jnp.float32), [2 * values], -1)
        kernel = self.param("kernel", xavier_uniform, (3, 3, x.shape[-1], self.features), jnp.float32)
        y = deform_conv(
            x.astype(self.dtype),
            offsets,
            kernel,
            jax.nn.sigmoid(logits) if self.modulated else None,
            stride=self.stride,
            padding=self.dilation,
            dilation=self.dilation,
        )
        if self.bias:
            y += self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        return y


class Deconvolution(nn.Module):
    """PyTorch's `ConvTranspose2d(kernel_size=2, stride=2)`, as a product of matrices.

    Each cell becomes two by two cells.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n H W C"]:
        count, height, width, channels = x.shape
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal", in_axis=2, out_axis=3)
        kernel = self.param("kernel", init, (2, 2, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        y = jnp.einsum("nhwc,ijcd->nhiwjd", x.astype(self.dtype), kernel.astype(self.dtype))
        return y.reshape(count, 2 * height, 2 * width, self.features) + bias.astype(self.dtype)
