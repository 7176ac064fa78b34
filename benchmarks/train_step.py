"""Times a whole training step on this machine, with the kernels for GPUs and without.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --config configs/retinanet_r50_fpn_1x.py --batch_size 8

By default it times YOLACT and Mask R-CNN with ResNet-50 on a GPU, and the small demos elsewhere. A
step consists of the losses, the gradients and the update of the optimizer, at the configuration's
input size, batch size and dtype (bfloat16 on GPUs and TPUs). Weights are new. Pictures are random,
are already on the device, and have 7 objects each, which is COCO's mean. The implementations that
run on this machine take turns ("mosaic_gpu", the kernels, and "xla", plain JAX). For each of them
the script prints:

- the milliseconds of a step (the median of several rounds, and the range between the 10th and the
  90th percentile), the images per second, and the ratio of plain JAX's time to this time;
- the floating-point operations per second, and their fraction of those of a large matrix product in
  that dtype on this machine. XLA counts them for the step in plain JAX, where the body of a loop
  counts once;
- the memory of the program;
- the total loss of the first step, which has to be approximately the same.
"""

import argparse
import itertools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from model_shapes.inputs import boxes_around_objects
from timing import describe_device, matrix_product_rate, measure

import jaxseg
from jaxseg.config import parse_config_flags
from jaxseg.data.stream.targets import no_targets
from jaxseg.devices import make_mesh, replicated, to_global
from jaxseg.models import trainable
from jaxseg.ops.implementation import missing_gpu
from jaxseg.structures import Batch, InputSpec, Targets
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.step import create_state, make_train_step

ON_GPU = ["configs/yolact_r50.py", "configs/mask_rcnn_r50_fpn_1x.py"]
ELSEWHERE = ["configs/demo_shapes.py", "configs/demo_mask_rcnn.py"]
OBJECTS = 7
# The number of points and of rows and columns of each object's mask.
POINTS = 160
BITMAP_SIDE = 128


def random_batch(config: jaxseg.Config, spec: InputSpec, seed: int) -> Batch:
    """Makes a batch with noise as pictures and masks, and with boxes like COCO's."""
    rng = np.random.default_rng(seed)
    count, size = config.train.batch_size, spec.input_sizes[0]
    none = no_targets(spec, config.data.max_objects, size)
    targets: Any = jax.tree.map(lambda array: np.repeat(array[None], count, 0), none)
    rows = min(OBJECTS, config.data.max_objects)
    targets.boxes[:, :rows] = boxes_around_objects(rng, (count, rows), size)
    targets.classes[:, :rows] = rng.integers(spec.num_classes, size=(count, rows))
    targets.valid[:, :rows] = True
    for packed in (targets.masks, targets.semantic):
        if packed is not None:
            packed[:] = rng.integers(256, size=packed.shape)
    fill_pools(targets, rows)
    return Batch(
        images=rng.integers(256, size=(count, *size, 3), dtype=np.uint8),
        image_sizes=np.full((count, 2), size, np.int32),
        indices=np.arange(count, dtype=np.int32),
        valid=np.ones(count, bool),
        targets=targets,
    )


def fill_pools(targets: Targets, rows: int) -> None:
    """Gives each object a polygon over its box with as many points as COCO's have, or a bitmap."""
    if targets.polygons is not None:
        points, parts, starts, counts = targets.polygons
        starts[:, :rows], counts[:, :rows] = np.arange(rows) * POINTS, POINTS
        angles = np.linspace(0, 2 * np.pi, POINTS)
        for row in range(rows):
            own, corners = slice(row * POINTS, (row + 1) * POINTS), targets.boxes[:, row, None, :]
            circle = 0.5 + 0.5 * np.stack([np.cos(angles), np.sin(angles)], -1)
            points[:, own] = corners[..., :2] + circle * (corners[..., 2:] - corners[..., :2])
            parts[:, own.start : own.stop - 1] = 1
    if targets.bitmaps is not None:
        bits, _, sizes, frames = targets.bitmaps
        bits[:] = 0xF0
        sizes[:, :rows], frames[:] = BITMAP_SIDE, targets.boxes


def run(config: jaxseg.Config, implementations: tuple[str, ...], options: argparse.Namespace) -> None:
    mesh = make_mesh()
    spec = jaxseg.build_model(config).input_spec
    batches = [to_global(random_batch(config, spec, seed), mesh) for seed in range(2)]
    variables = jaxseg.init_variables(jaxseg.build_model(config), config)
    trained = trainable(config, variables["params"])
    optimizer = make_optimizer(config.train, trained)

    def fresh_state() -> Any:
        # The step donates the buffers of its state, so the variables are copied first.
        state = jax.tree.map(jnp.array, create_state(variables, optimizer, config.train))
        return jax.device_put(state, replicated(mesh))

    dtype = jaxseg.build_model(config).dtype
    images = config.train.batch_size
    height, width = spec.input_sizes[0]
    print(f"\n{config.name}, {images} images of {height} x {width}, {jnp.dtype(dtype).name}", flush=True)
    lowered = {}
    for name in implementations:
        model = jaxseg.build_model(jaxseg.config.override(config, {"model.implementation": name}))
        step: Any = make_train_step(model, optimizer, trained=trained, train=config.train, mesh=mesh)
        lowered[name] = step.lower(fresh_state(), batches[0])
    if "mosaic_gpu" in lowered and "mosaic_gpu" not in lowered["mosaic_gpu"].as_text():
        print("  no kernel serves this step; plain JAX alone")
        del lowered["mosaic_gpu"]
    operations = lowered["xla"].cost_analysis()["flops"]
    rate = matrix_product_rate(dtype)
    medians = []
    for name, program in lowered.items():
        started = time.perf_counter()
        step = program.compile()
        compiled = time.perf_counter() - started
        state, scalars = step(fresh_state(), batches[0])
        loss = float(scalars["loss/total"])
        turns = itertools.cycle(batches)

        def advance(step: Any = step, turns: Any = turns) -> Any:
            nonlocal state
            state, scalars = step(state, next(turns))
            return scalars

        times = measure(advance, rounds=options.rounds, seconds=options.seconds)
        medians.append(times.median)
        memory = step.memory_analysis()
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        speed = operations / (1e-3 * times.median)
        print(
            f"  {name:<11} {times}, {1e3 * images / times.median:.1f} images/s, {times.median / medians[0]:.2f} times as long as the first"
        )
        print(
            f"              {speed / 1e12:.2f} TFLOP/s, {100 * speed / rate:.0f} % of the {rate / 1e12:.2f} of a matrix product", end="; "
        )
        print(f"{used / 1e9:.2f} GB; first loss {loss:.4f}; compiled in {compiled:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", help="files (default: see above)")
    parser.add_argument("--batch_size", type=int, help="images of all devices (default: the config's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, about")
    overrides, others = parse_config_flags(sys.argv[1:])
    options = parser.parse_args(others)
    missing = missing_gpu()
    implementations = ("xla",) if missing else ("mosaic_gpu", "xla")
    print(describe_device() + (f"; plain JAX alone, for {missing}" if missing else ""))
    if options.batch_size:
        overrides["train.batch_size"] = str(options.batch_size)
    for path in options.config or (ELSEWHERE if missing else ON_GPU):
        run(jaxseg.load_config(path, overrides), implementations, options)


if __name__ == "__main__":
    main()
