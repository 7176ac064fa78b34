"""Estimates the cost of each form of deformable convolution on TPUs, without a TPU.

    pip install libtpu
    python benchmarks/deform_conv_tpu.py
    python benchmarks/deform_conv_tpu.py --shapes yolact_c3 rcnn_c3 --generations v4 --dtypes float32

Each form is compiled for one chip, with the gradient of all operands. The table has the
milliseconds by the compiler's estimates (see `tpu_costs.py`), those of an ordinary convolution of
the same shape, the temporary memory in multiples of the input, and the number of rows that are
gathered or scattered one by one. No program is run.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tpu_costs
from model_shapes.deform_conv import DEFORM_CONV_SHAPES, DeformConvShape

from jaxseg.ops.deform_conv import FORMS, deform_conv

SHAPES = {shape.name: shape for shape in DEFORM_CONV_SHAPES}


def program(shape: DeformConvShape, form: str, dtype: Any) -> tuple[Callable[..., Any], tuple[jax.ShapeDtypeStruct, ...]]:
    """Returns the call with its gradients, and its abstract arguments; "plain" is a convolution."""

    def array(*sides: int, kind: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, kind)

    windows, channels = (shape.batch, *shape.output_size), shape.channels
    operands = (array(shape.batch, *shape.size, channels, kind=dtype), array(*windows, 18), array(3, 3, channels, channels, kind=dtype))
    factors = (array(*windows, 9),) if shape.modulated else ()

    def convolve(images: jax.Array, offsets: jax.Array, kernel: jax.Array, *factors: jax.Array) -> jax.Array:
        if form == "plain":
            strides, dimensions = (shape.stride, shape.stride), ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(images, kernel, strides, ((1, 1), (1, 1)), dimension_numbers=dimensions)
        return deform_conv(images, offsets, kernel, *factors, stride=shape.stride, padding=1, form=form)

    def with_gradient(gradient: jax.Array, *operands: jax.Array) -> Any:
        result, pull_back = jax.vjp(convolve, *operands)
        return result, pull_back(gradient)

    return with_gradient, (array(*windows, channels, kind=dtype), *operands, *factors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--forms", nargs="+", default=("plain", *FORMS), choices=("plain", *FORMS))
    parser.add_argument("--generations", nargs="+", default=["v5e"], choices=tpu_costs.TOPOLOGIES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float32"])
    options = parser.parse_args()
    tpu_costs.require_libtpu()
    jax.config.update("jax_platforms", "cpu")
    print(f"{'shape':<19}{'form':<9}{'chip':<5}{'dtype':<10}{'estimate':>11}{'temporary':>13}{'rows':>10}{'compiled in':>13}")
    for name, generation, dtype, form in itertools.product(options.shapes, options.generations, options.dtypes, options.forms):
        shape = SHAPES[name]
        function, arguments = program(shape, form, jnp.dtype(dtype))
        cost = tpu_costs.compile_for(generation, function, *arguments)
        map_bytes = shape.batch * shape.size[0] * shape.size[1] * shape.channels * jnp.dtype(dtype).itemsize
        print(
            f"{name:<19}{form:<9}{generation:<5}{dtype:<10}{1e3 * cost.seconds:>8.2f} ms{cost.temporary_bytes / map_bytes:>8.1f} maps"
            f"{cost.gathered_rows + cost.scattered_rows:>10}{cost.compile_seconds:>11.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
