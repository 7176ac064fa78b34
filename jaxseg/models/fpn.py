"""The feature pyramid network (arXiv:1612.03144)."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.layers import conv, kaiming_uniform
from jaxseg.ops.images import resize_bilinear, resize_nearest


class FPN(nn.Module):
    """A feature pyramid: lateral convolutions, a top-down path, output convolutions, extra levels.

    Lateral convolutions are 1x1 and output convolutions 3x3. The styles differ as follows. "yolact"
    upsamples bilinearly, has a ReLU after the 3x3 convolutions, and two convolutions with stride 2
    on P5. "rcnn" upsamples to the nearest neighbours, has no ReLU, and takes every second cell of
    P5 as P6. "retinanet" is like "rcnn", but with convolutions with stride 2 on C5 and, after a
    ReLU, on P6.

    Attributes:
        channels: the number of channels of every level.
        style: the original whose rules apply.
        dtype: the type in which the convolutions compute.
    """

    channels: int = 256
    style: Literal["yolact", "rcnn", "retinanet"] = "yolact"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "B _ _ _"]]) -> tuple[Float[Array, "B _ _ C"], ...]:
        """Computes the pyramid.

        Args:
            features: the backbone's outputs up to C5, the finest first.

        Returns:
            A level of the resolution of each output, and the extra levels, the finest first.
        """
        plain = self.style == "yolact"
        init = nn.initializers.xavier_uniform() if plain else kaiming_uniform

        def layer(kernel: int, stride: int, name: str, x: Array) -> Array:
            return conv(self.channels, kernel, stride, init=init, dtype=self.dtype, name=name)(x)

        levels: list[Array] = []
        top_down = None
        for level, x in zip(range(5, 5 - len(features), -1), reversed(features), strict=True):
            lateral = layer(1, 1, f"lateral{level}", x)
            if top_down is not None:
                size = (lateral.shape[1], lateral.shape[2])
                lateral += resize_bilinear(top_down, size) if plain else resize_nearest(top_down, size)
            top_down = lateral
            output = layer(3, 1, f"output{level}", top_down)
            levels.insert(0, nn.relu(output) if plain else output)
        if self.style == "rcnn":
            return (*levels, levels[-1][:, ::2, ::2])
        # YOLACT has no ReLU on or between its extra levels.
        p6 = layer(3, 2, "downsample6", levels[-1] if plain else features[-1])
        p7 = layer(3, 2, "downsample7", p6 if plain else nn.relu(p6))
        return (*levels, p6, p7)
