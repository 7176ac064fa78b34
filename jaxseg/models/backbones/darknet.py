"""Darknet-53 (YOLOv3, arXiv:1804.02767) without its classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.layers import BatchNorm, NormMode, conv


class ConvUnit(nn.Module):
    """Convolution, batch norm, leaky ReLU with slope 0.1."""

    features: int
    kernel: int
    stride: int
    norm_mode: NormMode
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B H W C"]:
        x = conv(self.features, self.kernel, self.stride, bias=False, dtype=self.dtype, name="conv")(x)
        return nn.leaky_relu(BatchNorm(self.norm_mode, dtype=self.dtype, name="bn")(x, train=train), 0.1)


class DarkNet(nn.Module):
    """Five stages, each a strided convolution and residual pairs (1x1 to half the channels, 3x3 back).

    Attributes:
        stage_sizes: residual pairs a stage; (1, 2, 8, 8, 4) is Darknet-53.
        width: channels of the stem; stage i ends in `width * 2 ** (i + 1)`.
    """

    stage_sizes: tuple[int, ...] = (1, 2, 8, 8, 4)
    width: int = 32
    norm_mode: NormMode = "train"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Float[Array, "B _ _ _"], ...]:
        """The outputs of all five stages, at strides 2 to 32."""

        def unit(features: int, kernel: int, stride: int, name: str, y: Array) -> Array:
            return ConvUnit(features, kernel, stride, self.norm_mode, self.dtype, name=name)(y, train=train)

        x = unit(self.width, 3, 1, "stem", x)
        outputs = []
        for stage, blocks in enumerate(self.stage_sizes):
            features = self.width * 2 ** (stage + 1)
            x = unit(features, 3, 2, f"stage{stage + 1}_down", x)
            for block in range(blocks):
                y = unit(features // 2, 1, 1, f"stage{stage + 1}_block{block}_conv1", x)
                # No activation after the sum.
                x = x + unit(features, 3, 1, f"stage{stage + 1}_block{block}_conv2", y)
            outputs.append(x)
        return tuple(outputs)
