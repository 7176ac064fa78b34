"""ResNet (arXiv:1512.03385) with bottleneck blocks, in the variants of torchvision and MSRA."""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.backbones.config import DeformableConfig
from jaxseg.models.layers import BatchNorm, DeformableConv, NormMode, conv


class Bottleneck(nn.Module):
    """A bottleneck block: a 1x1, a 3x3 and a 1x1 convolution, and a shortcut around them.

    The first two convolutions have `width` channels, the last has `4 * width`.

    Attributes:
        width: see above.
        stride: the stride of the block.
        project: whether the shortcut is a 1x1 convolution, as it must be where the shape changes.
        dilation: the dilation of the 3x3 convolution.
        stride_in_1x1: whether the first convolution has the stride, instead of the 3x3 one.
        norm: "batch", or "group" with 32 groups.
        norm_mode: the mode of batch norm.
        norm_epsilon: the number that is added to the variance.
        deformable: the settings of the 3x3 convolution if it is deformable, or None.
        dtype: the type in which the convolutions compute.
    """

    width: int
    stride: int
    project: bool
    dilation: int = 1
    stride_in_1x1: bool = False
    norm: Literal["batch", "group"] = "batch"
    norm_mode: NormMode = "train"
    norm_epsilon: float = 1e-5
    deformable: DeformableConfig | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B H W C"]:
        convolution = functools.partial(conv, bias=False, dtype=self.dtype)
        norm = functools.partial(apply_norm, kind=self.norm, mode=self.norm_mode, epsilon=self.norm_epsilon, train=train)
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = nn.relu(norm(convolution(self.width, 1, first, name="conv1")(x), name="bn1"))
        y = nn.relu(norm(self._middle(second)(y), name="bn2"))
        y = norm(convolution(4 * self.width, 1, name="conv3")(y), name="bn3")
        if self.project:
            x = norm(convolution(4 * self.width, 1, self.stride, name="shortcut")(x), name="bn_shortcut")
        return nn.relu(x + y)

    def _middle(self, stride: int) -> nn.Module:
        """Makes the 3x3 convolution."""
        if self.deformable is None:
            return conv(self.width, 3, stride, dilation=self.dilation, bias=False, dtype=self.dtype, name="conv2")
        return DeformableConv(
            self.width,
            stride,
            self.dilation,
            modulated=self.deformable.modulated,
            offset_groups=self.deformable.offset_groups,
            bias=self.deformable.bias,
            dtype=self.dtype,
            name="conv2",
        )


def apply_norm(
    x: Float[Array, "B h w c"], *, kind: Literal["batch", "group"], mode: NormMode, epsilon: float, name: str, train: bool
) -> Float[Array, "B h w c"]:
    """Applies a norm as the submodule `name` of the module that calls this function."""
    if kind == "group":
        # The fast variance, the mean of the squares minus the square of the mean, loses digits in
        # channels whose mean is far from 0.
        return nn.GroupNorm(32, epsilon=epsilon, use_fast_variance=False, dtype=x.dtype, name=name)(x)
    return BatchNorm(mode, epsilon, x.dtype, name=name)(x, train=train)


class ResNet(nn.Module):
    """A ResNet without its classifier.

    Attributes:
        stage_sizes: the number of blocks in each stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3)
            ResNet-101, and (3, 8, 36, 3) ResNet-152.
        width: the number of channels of the stem; the stages have 4, 8, 16 and 32 times as many.
        stride_in_1x1: see `Bottleneck`.
        norm: see `Bottleneck`.
        norm_mode: the mode of batch norm outside of the frozen stages.
        norm_epsilon: the number that is added to the variance.
        deformable: the blocks whose 3x3 convolutions are deformable.
        frozen_stages: the number of parts (the stem, then the stages) that do not learn, and whose
            norms keep their statistics.
        dilated_c5: whether the last stage keeps C4's resolution, with dilated 3x3 convolutions.
        dtype: the type in which the convolutions compute.
    """

    stage_sizes: tuple[int, ...]
    width: int = 64
    stride_in_1x1: bool = False
    norm: Literal["batch", "group"] = "batch"
    norm_mode: NormMode = "train"
    norm_epsilon: float = 1e-5
    deformable: DeformableConfig = DeformableConfig()
    frozen_stages: int = 0
    dilated_c5: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"], *, train: bool) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Returns C2 to C5, at strides 4, 8, 16 and 32."""
        x = conv(self.width, 7, 2, bias=False, dtype=self.dtype, name="conv1")(x)
        x = apply_norm(x, kind=self.norm, mode=self._mode(0), epsilon=self.norm_epsilon, name="bn1", train=train)
        x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        outputs = []
        for stage, blocks in enumerate(self.stage_sizes):
            # Nothing before this stage learns, so no gradient has to flow back there.
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
                    deformable=self.deformable if self.deformable.in_block(stage, block) else None,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block}",
                )(x, train=train)
            outputs.append(x)
        return tuple(outputs)

    def _mode(self, part: int) -> NormMode:
        return "frozen" if part < self.frozen_stages else self.norm_mode
