"""Feature pyramids (arXiv:1612.03144)."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.detector import resize_bilinear
from jaxseg.models.layers import conv, kaiming_uniform


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path, a 3x3 convolution a level, and extra levels on top.

    Attributes:
        channels: of every level.
        style: "yolact": bilinear upsampling, ReLU after the 3x3 convolutions, two strided convolutions on P5. "rcnn": nearest
            neighbours, no ReLU, every second cell of P5 as P6. "retinanet": the same, with strided convolutions on C5 and, after
            a ReLU, on P6.
    """

    channels: int = 256
    style: Literal["yolact", "rcnn", "retinanet"] = "yolact"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "B _ _ _"]]) -> tuple[Float[Array, "B _ _ C"], ...]:
        """The trunk's outputs up to C5 to levels of the same resolutions and the extra ones, finest first."""
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
        # No ReLU on or between YOLACT's extra levels.
        p6 = layer(3, 2, "downsample6", levels[-1] if plain else features[-1])
        p7 = layer(3, 2, "downsample7", p6 if plain else nn.relu(p6))
        return (*levels, p6, p7)


def resize_nearest(features: Float[Array, "B h w c"], size: tuple[int, int]) -> Float[Array, "B H W c"]:
    """Nearest neighbours as PyTorch's `interpolate` picks them; where sizes double, each cell is repeated."""
    height, width = features.shape[1:3]
    if size == (2 * height, 2 * width):
        return jnp.repeat(jnp.repeat(features, 2, 1), 2, 2)
    rows, columns = jnp.arange(size[0]) * height // size[0], jnp.arange(size[1]) * width // size[1]
    return features[:, rows][:, :, columns]
