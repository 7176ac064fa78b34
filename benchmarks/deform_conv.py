"""Times `jaxseg.ops.deform_conv` on this machine, beside the same sums in torch.

    python benchmarks/deform_conv.py
    python benchmarks/deform_conv.py --shapes yolact_c3 rcnn_c4 --repetitions 3

The shapes are those of `model_shapes/deform_conv.py`, with one image. Offsets are normal with a
standard deviation of two pixels. If torch is installed, it samples each tap with `grid_sample` and
multiplies the samples by the tap's weights. torchvision's compiled operator is not used.

The sides take turns and have to agree. The table has medians of the elapsed time in milliseconds
with their range, of the result alone and with the gradients of all operands, and the ratio of
torch's time to ours; and the temporary memory of the gradient in multiples of the input.
"""

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from model_shapes.deform_conv import DEFORM_CONV_SHAPES, DeformConvShape
from timing import Times

from jaxseg.ops.deform_conv import deform_conv

SHAPES = {shape.name: dataclasses.replace(shape, batch=1) for shape in DEFORM_CONV_SHAPES}


def operands(shape: DeformConvShape) -> list[np.ndarray]:
    """Makes the input, the offsets, the kernel and, for version 2, the modulation."""
    rng = np.random.default_rng(0)
    windows, channels = (shape.batch, *shape.output_size), shape.channels
    made = [
        rng.standard_normal((shape.batch, *shape.size, channels), np.float32),
        2 * rng.standard_normal((*windows, 18), np.float32),
        rng.standard_normal((3, 3, channels, channels), np.float32) / np.float32(3 * channels**0.5),
    ]
    return [*made, rng.random((*windows, 9), np.float32)] if shape.modulated else made


def in_torch(shape: DeformConvShape, arrays: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Returns functions for the result, and for the gradients of all operands."""
    import torch

    tensors = [torch.from_numpy(arrays[0]).permute(0, 3, 1, 2).contiguous(), *map(torch.from_numpy, arrays[1:])]
    height, width = shape.size
    rows, columns = (torch.arange(side) * shape.stride for side in shape.output_size)

    def convolve(images: Any, offsets: Any, kernel: Any, factors: Any = None) -> Any:
        total = 0
        for tap in range(9):
            y = rows[:, None] + tap // 3 - 1 + offsets[..., 2 * tap]
            x = columns + tap % 3 - 1 + offsets[..., 2 * tap + 1]
            grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
            samples = torch.nn.functional.grid_sample(images, grid, align_corners=False)
            samples = samples if factors is None else samples * factors[:, None, ..., tap]
            total = total + torch.einsum("bchw,cf->bfhw", samples, kernel[tap // 3, tap % 3])
        return total

    def forward() -> Any:
        with torch.no_grad():
            return convolve(*tensors)

    def gradient() -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        return torch.autograd.grad(convolve(*leaves).sum(), leaves)

    return forward, gradient


def in_jax(shape: DeformConvShape, arrays: list[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any], float]:
    """Returns the same functions, and the temporary memory of the second in inputs."""

    def convolve(*arrays: jax.Array) -> jax.Array:
        return deform_conv(*arrays, stride=shape.stride, padding=1)

    forward = jax.jit(convolve).lower(*arrays).compile()
    gradient = jax.jit(jax.grad(lambda *arrays: convolve(*arrays).sum(), argnums=range(len(arrays)))).lower(*arrays).compile()
    memory = gradient.memory_analysis().temp_size_in_bytes / arrays[0].nbytes
    return lambda: jax.block_until_ready(forward(*arrays)), lambda: jax.block_until_ready(gradient(*arrays)), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    peer = importlib.util.find_spec("torch") is not None
    for name in options.shapes:
        shape, arrays = SHAPES[name], operands(SHAPES[name])
        *ours, memory = in_jax(shape, arrays)
        sides = [*ours, *(in_torch(shape, arrays) if peer else ())]
        if peer:
            np.testing.assert_allclose(jnp.moveaxis(sides[0](), 3, 1), sides[2]().numpy(), atol=2e-3)
        milliseconds: list[list[float]] = [[] for _ in sides]
        for repetition in range(options.repetitions + 1):
            for side, times in zip(sides, milliseconds, strict=True):
                start = time.perf_counter()
                side()
                if repetition:
                    times.append(1e3 * (time.perf_counter() - start))
        results = [Times.of(times) for times in milliseconds]
        print(f"{name}: {shape.size[0]} x {shape.size[1]} x {shape.channels}, memory of the gradient {memory:.1f} inputs")
        for i, what in enumerate(("result", "with gradients")):
            beside = f"; torch {results[i + 2]}, ratio {results[i + 2].median / results[i].median:.1f}" if peer else ""
            print(f"  {what:<15} jaxseg {results[i]}{beside}", flush=True)


if __name__ == "__main__":
    main()
