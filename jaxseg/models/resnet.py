"""ResNet (arXiv:1512.03385) with bottleneck blocks, in torchvision's layout: the stride sits on the 3x3 convolution."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.layers import BatchNorm, conv


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3, 1x1 to `4 * width`, with a projected shortcut where the shape changes."""

    width: int
    stride: int
    project: bool
    frozen: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B H W C"]:
        def norm(name: str, y: Array) -> Array:
            return BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(y, train=train)

        y = nn.relu(norm("bn1", conv(self.width, 1, bias=False, dtype=self.dtype, name="conv1")(x)))
        y = nn.relu(norm("bn2", conv(self.width, 3, self.stride, bias=False, dtype=self.dtype, name="conv2")(y)))
        y = norm("bn3", conv(4 * self.width, 1, bias=False, dtype=self.dtype, name="conv3")(y))
        if self.project:
            x = norm("bn_shortcut", conv(4 * self.width, 1, self.stride, bias=False, dtype=self.dtype, name="shortcut")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The trunk without its classifier.

    Attributes:
        stage_sizes: blocks a stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
        width: channels of the stem; the stages end in 4, 8, 16 and 32 times as many.
    """

    stage_sizes: tuple[int, ...]
    width: int = 64
    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Float[Array, "B _ _ _"], ...]:
        """C2 to C5, at strides 4, 8, 16 and 32."""
        x = conv(self.width, 7, 2, bias=False, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(BatchNorm(frozen=self.frozen, dtype=self.dtype, name="bn1")(x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                x = Bottleneck(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    project=block == 0,
                    frozen=self.frozen,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block}",
                )(x, train=train)
            outputs.append(x)
        return tuple(outputs)
