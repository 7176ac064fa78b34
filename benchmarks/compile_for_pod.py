r"""Compiles the training step for a slice of TPUs, and prints its memory and its collectives.

    pip install libtpu
    python benchmarks/compile_for_pod.py --config configs/yolact_r50.py --topology v5e:4x4
    python benchmarks/compile_for_pod.py --config configs/mask_rcnn_r50_fpn_1x.py \
        --topology v5e:4x4 --images_per_device 2

No TPU is needed. The script prints the memory of each device and the collectives of the program for
each shape of the network's input. Batches are split over the devices, so sums and the statistics of
batch norm need all-reduces. An all-gather would mean that an operation needs images of other
devices.
"""

import argparse
import collections
import re
import sys
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import jaxseg
from jaxseg.config import parse_config_flags
from jaxseg.data.stream.targets import no_targets
from jaxseg.devices import AXIS
from jaxseg.structures import Batch, InputSpec
from jaxseg.training.optimizer import make_optimizer
from jaxseg.training.step import TrainState, create_state, make_train_step

# A line of a compiled program that contains a collective.
COLLECTIVE = re.compile(r"^.* (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(.*$", re.MULTILINE)


def abstract_batch(config: jaxseg.Config, spec: InputSpec, input_size: tuple[int, int]) -> Batch:
    """Returns the shapes and dtypes of a global training batch of one of the input's sizes."""
    one = Batch(
        images=np.zeros((*input_size, 3), np.uint8),
        image_sizes=np.zeros(2, np.int32),
        indices=np.zeros((), np.int32),
        valid=np.zeros((), bool),
        targets=no_targets(spec, config.data.max_objects, input_size),
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.train.batch_size, *x.shape), x.dtype), one)


def abstract_step(config: jaxseg.Config, mesh: Mesh) -> tuple[Any, TrainState]:
    """Returns the training step, and the shapes and dtypes of its state."""
    model = jaxseg.build_model(config)
    variables = jax.eval_shape(lambda: jaxseg.init_variables(model, config))
    trained = jaxseg.models.trainable(config, variables["params"])
    optimizer = make_optimizer(config.train, trained)
    state = jax.eval_shape(lambda: create_state(jaxseg.init_variables(model, config), optimizer, config.train))
    return make_train_step(model, optimizer, trained=trained, train=config.train, mesh=mesh), state


def main(arguments: list[str]) -> None:
    """Compiles the step for each input size, and prints the results."""
    parser = argparse.ArgumentParser(description="Compiles the training step for a TPU slice.")
    parser.add_argument("--config", required=True)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--images_per_device", type=int, default=8)
    overrides, others = parse_config_flags(arguments)
    options = parser.parse_args(others)
    devices = topologies.get_topology_desc(options.topology, platform="tpu").devices
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    batch_size = options.images_per_device * mesh.size
    config = jaxseg.load_config(options.config, {"train.batch_size": batch_size, "model.dtype": "bfloat16", **overrides})
    step, state = abstract_step(config, mesh)
    print(f"{config.name}, {options.images_per_device} images on each of {mesh.size} devices of {options.topology}, bfloat16")
    spec = jaxseg.build_model(config).input_spec
    for height, width in spec.input_sizes:
        started = time.perf_counter()
        compiled = step.lower(state, abstract_batch(config, spec, (height, width))).compile()
        memory = compiled.memory_analysis()
        print(f"{height}x{width}, compiled in {time.perf_counter() - started:.0f} s")
        print(f"a device: {memory.argument_size_in_bytes / 1e9:.2f} GB arguments, {memory.temp_size_in_bytes / 1e9:.2f} GB temporary")
        print(f"collectives: {dict(collections.Counter(match[1] for match in COLLECTIVE.finditer(compiled.as_text())))}")


if __name__ == "__main__":
    main(sys.argv[1:])
