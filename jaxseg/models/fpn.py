"""Feature pyramid (arXiv:1612.03144) as YOLACT builds it: P3 to P5 from C3 to C5, P6 and P7 by strided convolutions."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxseg.models.detector import resize_bilinear
from jaxseg.models.layers import conv


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a bilinear top-down path, a 3x3 convolution with ReLU a level, two extra levels."""

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[Float[Array, "B _ _ _"]]) -> tuple[Float[Array, "B _ _ C"], ...]:
        """C3, C4, C5 to P3, P4, P5, P6, P7."""
        levels: list[Array] = []
        top_down = None
        for level in (5, 4, 3):
            x = features[level - 3]
            lateral = conv(self.channels, 1, dtype=self.dtype, name=f"lateral{level}")(x)
            top_down = lateral if top_down is None else resize_bilinear(top_down, (x.shape[1], x.shape[2])) + lateral
            levels.insert(0, nn.relu(conv(self.channels, 3, dtype=self.dtype, name=f"output{level}")(top_down)))
        for level in (6, 7):
            # No ReLU on or between the extra levels.
            levels.append(conv(self.channels, 3, 2, dtype=self.dtype, name=f"downsample{level}")(levels[-1]))
        return tuple(levels)
