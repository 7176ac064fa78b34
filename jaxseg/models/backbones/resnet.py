"""ResNet (arXiv:1512.03385) with bottleneck blocks, in torchvision's layout, or with MSRA's place for the stride."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.layers import BatchNorm, NormMode, conv


class Bottleneck(nn.Module):
    """1x1 to `width`, 3x3, 1x1 to `4 * width`, with a projected shortcut where the shape changes.

    Attributes:
        stride_in_1x1: the stride sits on the first convolution; else on the 3x3.
        norm: "batch", or "group" with 32 groups.
        norm_mode: of batch norm.
    """

    width: int
    stride: int
    project: bool
    dilation: int = 1
    stride_in_1x1: bool = False
    norm: Literal["batch", "group"] = "batch"
    norm_mode: NormMode = "train"
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B H W C"]:
        def unit(i: int, features: int, kernel: int, stride: int, y: Array) -> Array:
            y = convolution(features, kernel, stride, self.dilation if kernel == 3 else 1, self.dtype, f"conv{i}")(y)
            return self._norm(f"bn{i}", y, train)

        strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = nn.relu(unit(1, self.width, 1, strides[0], x))
        y = nn.relu(unit(2, self.width, 3, strides[1], y))
        y = unit(3, 4 * self.width, 1, 1, y)
        if self.project:
            x = self._norm("bn_shortcut", convolution(4 * self.width, 1, self.stride, 1, self.dtype, "shortcut")(x), train)
        return nn.relu(x + y)

    def _norm(self, name: str, y: Array, train: bool) -> Array:
        return apply_norm(self.norm, self.norm_mode, self.norm_epsilon, self.dtype, name, y, train=train)


def convolution(features: int, kernel: int, stride: int, dilation: int, dtype: Any, name: str) -> nn.Conv:
    """A convolution that a norm follows."""
    return conv(features, kernel, stride, dilation=dilation, bias=False, dtype=dtype, name=name)


def apply_norm(
    kind: Literal["batch", "group"], mode: NormMode, epsilon: float, dtype: Any, name: str, x: Array, *, train: bool
) -> Float[Array, "B h w c"]:
    """The norm `name` of the module that calls this."""
    if kind == "group":
        # The fast variance, mean of squares less square of mean, loses the digits of channels far from 0.
        return nn.GroupNorm(32, epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)(x)
    return BatchNorm(mode, epsilon, dtype, name=name)(x, train=train)


class ResNet(nn.Module):
    """The trunk without its classifier.

    Attributes:
        stage_sizes: blocks a stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101, (3, 8, 36, 3) ResNet-152.
        width: channels of the stem; the stages end in 4, 8, 16 and 32 times as many.
        frozen_stages: the first so many parts (the stem, then the stages) do not learn, nor do their norms' statistics.
        dilated_c5: the last stage keeps C4's resolution, and its 3x3 convolutions spread out instead.
    """

    stage_sizes: tuple[int, ...]
    width: int = 64
    stride_in_1x1: bool = False
    norm: Literal["batch", "group"] = "batch"
    norm_mode: NormMode = "train"
    norm_epsilon: float = 1e-5
    frozen_stages: int = 0
    dilated_c5: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Float[Array, "B _ _ _"], ...]:
        """C2 to C5, at strides 4, 8, 16 and 32."""
        x = convolution(self.width, 7, 2, 1, self.dtype, "conv1")(x)
        x = nn.relu(apply_norm(self.norm, self._mode(0), self.norm_epsilon, self.dtype, "bn1", x, train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for stage, blocks in enumerate(self.stage_sizes):
            # Nothing before this learns, so nothing need flow back there.
            x = jax.lax.stop_gradient(x) if stage + 1 == self.frozen_stages else x
            dilated = self.dilated_c5 and stage == 3
            for block in range(blocks):
                x = Bottleneck(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 and not dilated else 1,
                    project=block == 0,
                    dilation=2 if dilated else 1,
                    stride_in_1x1=self.stride_in_1x1,
                    norm=self.norm,
                    norm_mode=self._mode(stage + 1),
                    norm_epsilon=self.norm_epsilon,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block}",
                )(x, train=train)
            outputs.append(x)
        return tuple(outputs)

    def _mode(self, part: int) -> NormMode:
        return "frozen" if part < self.frozen_stages else self.norm_mode
