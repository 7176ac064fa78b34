"""Darknet-53 (YOLOv3, arXiv:1804.02767) without its classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.layers import BatchNorm, NormMode, conv


class ConvUnit(nn.Module):
    """A convolution, batch norm, and a leaky ReLU with slope 0.1."""

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
    """A backbone of five stages, each a convolution with stride 2 and a number of residual blocks.

    A residual block is a 1x1 convolution to half the channels and a 3x3 convolution back.

    Attributes:
        stage_sizes: the number of residual blocks in each stage; (1, 2, 8, 8, 4) is Darknet-53.
        width: the number of channels of the stem; stage i has `width * 2 ** (i + 1)`.
        norm_mode: the mode of batch norm.
        dtype: the type in which the convolutions compute.
    """

    stage_sizes: tuple[int, ...] = (1, 2, 8, 8, 4)
    width: int = 32
    norm_mode: NormMode = "train"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Returns the outputs of all five stages, at strides 2 to 32."""

        def unit(y: Array, features: int, kernel: int, *, stride: int = 1, name: str) -> Array:
            layer = ConvUnit(features, kernel, stride, norm_mode=self.norm_mode, dtype=self.dtype, name=name)
            return layer(y, train=train)

        x = unit(x, self.width, 3, name="stem")
        outputs = []
        for stage, blocks in enumerate(self.stage_sizes):
            features = self.width * 2 ** (stage + 1)
            x = unit(x, features, 3, stride=2, name=f"stage{stage + 1}_down")
            for block in range(blocks):
                y = unit(x, features // 2, 1, name=f"stage{stage + 1}_block{block}_conv1")
                # Darknet has no activation after the sum.
                x = x + unit(y, features, 3, name=f"stage{stage + 1}_block{block}_conv2")
            outputs.append(x)
        return tuple(outputs)
