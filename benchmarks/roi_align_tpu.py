"""Estimates the cost of each form of RoIAlign on TPUs by XLA's compiler, without a TPU.

    pip install libtpu
    python benchmarks/roi_align_tpu.py
    python benchmarks/roi_align_tpu.py --shapes train_boxes detect_boxes --forms gather matmul
    python benchmarks/roi_align_tpu.py --generations v4 --dtypes float32

Each form is compiled for one chip at shapes of `model_shapes/` and at those of a small image, with
its gradient if the shape is one of training. The table has the milliseconds by the compiler's
estimates (see `tpu_costs.py`), the lower limit in milliseconds for reading the arguments and
writing the results, the temporary memory, and the number of rows that are gathered or scattered one
by one. Loops over windows count as one iteration per RoI, which is their minimum. No program is
run.
"""

import argparse
import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import tpu_costs
from model_shapes.roi_align import ROI_ALIGN_SHAPES, RoiAlignShape

from jaxseg.ops.roi_align import FORMS, roi_align

TRAIN = next(shape for shape in ROI_ALIGN_SHAPES if shape.name == "train_boxes")
SHAPES = {
    shape.name: shape
    for shape in (
        *ROI_ALIGN_SHAPES,
        dataclasses.replace(TRAIN, name="train_boxes_small", input_size=(256, 384)),
        dataclasses.replace(TRAIN, name="train_boxes_adaptive_small", input_size=(256, 384), sampling_ratio=0, aligned=True),
    )
}
TYPICAL = ("train_boxes", "train_masks", "train_boxes_adaptive", "train_c4", "train_boxes_small", "detect_boxes", "detect_masks")


def program(shape: RoiAlignShape, form: str, dtype: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the call, with its gradient for shapes of training, and its abstract arguments."""
    features = tuple(jax.ShapeDtypeStruct((shape.batch, *size, shape.channels), dtype) for size in shape.level_sizes)
    boxes = jax.ShapeDtypeStruct((shape.batch, shape.rois, 4), jnp.float32)
    levels = jax.ShapeDtypeStruct((shape.batch, shape.rois), jnp.int32)
    result = jax.ShapeDtypeStruct((shape.batch, shape.rois, shape.output_size, shape.output_size, shape.channels), dtype)

    def pool(features: tuple[jax.Array, ...], boxes: jax.Array, levels: jax.Array) -> jax.Array:
        return roi_align(features, boxes, levels, **shape.arguments, implementation=form)

    def pool_and_gradient(features: tuple[jax.Array, ...], boxes: jax.Array, levels: jax.Array, gradient: jax.Array) -> Any:
        pooled, pull_back = jax.vjp(lambda features: pool(features, boxes, levels), features)
        return pooled, pull_back(gradient)

    if shape.training:
        return pool_and_gradient, (features, boxes, levels, result)
    return pool, (features, boxes, levels)


def minimal_bytes(shape: RoiAlignShape, dtype: Any) -> int:
    """Returns the bytes of the features and the result, and in training of their gradients."""
    pixels = sum(height * width for height, width in shape.level_sizes)
    numbers = shape.batch * shape.channels * (pixels + shape.rois * shape.output_size**2)
    return numbers * jnp.dtype(dtype).itemsize * (2 if shape.training else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=TYPICAL, choices=SHAPES, metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--generations", nargs="+", default=["v5e"], choices=tpu_costs.TOPOLOGIES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=["bfloat16", "float32"])
    options = parser.parse_args()
    tpu_costs.require_libtpu()
    jax.config.update("jax_platforms", "cpu")
    print(f"{'shape':<28}{'form':<9}{'chip':<5}{'dtype':<10}{'estimate':>11}{'floor':>10}{'temporary':>13}{'rows':>10}{'compiled in':>13}")
    for name, generation, dtype, form in itertools.product(options.shapes, options.generations, options.dtypes, options.forms):
        shape = SHAPES[name]
        if form == "gather" and not shape.sampling_ratio:
            continue
        function, arguments = program(shape, form, jnp.dtype(dtype))
        turns = shape.batch * shape.rois * (2 if shape.training else 1)
        cost = tpu_costs.compile_for(generation, function, *arguments, turns=turns)
        floor = minimal_bytes(shape, dtype) / tpu_costs.BYTES_PER_SECOND[generation]
        print(
            f"{name:<28}{form:<9}{generation:<5}{dtype:<10}{1e3 * cost.seconds:>8.1f} ms{1e3 * floor:>7.2f} ms"
            f"{cost.temporary_bytes / 2**20:>9.0f} MiB{cost.gathered_rows + cost.scattered_rows:>10}{cost.compile_seconds:>11.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
