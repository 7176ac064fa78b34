"""Convolution and batch norm with the defaults of the originals."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _pointwise(inputs: Array, kernel: Array, strides: Sequence[int], *_: Any, **__: Any) -> Array:
    """A 1x1 convolution as a product of matrices: on CPUs XLA computes its weight gradient several times as fast."""
    return jnp.einsum("bhwc,cd->bhwd", inputs[:, :: strides[0], :: strides[1]], kernel[0, 0])


def conv(features: int, kernel: int, stride: int = 1, *, bias: bool = True, dtype: Any = jnp.float32, name: str | None = None) -> nn.Conv:
    """A square convolution padded by half its kernel on each side, as PyTorch pads (not `SAME`, which is lopsided at stride 2)."""
    pad = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        conv_general_dilated=_pointwise if kernel == 1 else None,
        name=name,
    )


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's statistics: the running variance is the unbiased one, momentum 0.1 of the new value.

    Under jit over sharded devices the statistics are those of the global batch.

    Attributes:
        frozen: use the running statistics in training, too, and let scale and bias have no gradient.
        epsilon: added to the variance.
        dtype: of the result; the arithmetic is float32.
    """

    frozen: bool = False
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if self.frozen:
            scale, bias = jax.lax.stop_gradient((scale, bias))
        if train and not self.frozen:
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
