"""Which implementation of an operation runs: the one its caller names, else the environment's, else the best there is.

- "xla": plain JAX, for any backend.
- "mosaic_gpu": a Pallas kernel, for NVIDIA GPUs of compute capability 9.0 and later. Elsewhere nothing chooses it.
"""

import math
import os
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.sharding import AxisType, PartitionSpec

Implementation = Literal["xla", "mosaic_gpu"]
NAMES: tuple[str, ...] = get_args(Implementation)
ENVIRONMENT = "JAXSEG_IMPLEMENTATION"
COMPUTE_CAPABILITY = 9.0


def named(implementation: str | None) -> str | None:
    """The implementation somebody asks for: the caller, or else the environment; None leaves the choice to us.

    Raises:
        ValueError: when the environment names one that does not exist.
    """
    name = implementation or os.environ.get(ENVIRONMENT) or None
    if implementation is None and name is not None and name not in NAMES:
        raise ValueError(f"The environment variable {ENVIRONMENT} = {name!r} is unknown; it can be {' or '.join(NAMES)}.")
    return name


def missing_gpu() -> str | None:
    """Why this process has no GPU that the kernels run on, or None where it has."""
    if jax.default_backend() != "gpu":
        return f"this process computes on {jax.default_backend()}"
    for device in jax.local_devices():
        capability = str(getattr(device, "compute_capability", "unknown"))
        if not re.fullmatch(r"\d+\.\d+", capability):
            return f"{device.device_kind} is not a GPU of NVIDIA"
        if float(capability) < COMPUTE_CAPABILITY:
            return f"{device.device_kind} has compute capability {capability}, and {COMPUTE_CAPABILITY} is the least"
    return None


def dispatch(
    implementation: str | None,
    *operands: Any,
    kernel: Callable[..., Any],
    plain: Callable[..., Any],
    obstacle: str | None = None,
) -> Any:
    """`kernel(*operands)` or `plain(*operands)`: two functions with the same results, the first for GPUs.

    Within a mesh whose axes are `Auto` the kernel runs on each device's part of the batch: to XLA's partitioner a kernel is a
    black box, and it would bring the whole batch to every device.

    Args:
        implementation: see the module.
        operands: arrays, and tuples of arrays, the batch first in each.
        kernel: runs on GPUs.
        plain: runs anywhere.
        obstacle: why the kernel cannot serve these operands, a sentence's second half; None where it can.

    Raises:
        ValueError: when the kernel is asked for by name and cannot serve, or the environment's name is unknown.
    """
    name = named(implementation)
    if name == "mosaic_gpu":
        if obstacle:
            raise ValueError(f'implementation "mosaic_gpu" cannot do this: {obstacle}; "xla" can.')
        return _on_each_device(kernel, operands)(*operands)
    if name is not None or obstacle or missing_gpu():
        return plain(*operands)
    # A process with GPUs may compile for its CPU, too.
    return jax.lax.platform_dependent(*operands, cuda=_on_each_device(kernel, operands), default=plain)


def _on_each_device(function: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[..., Any]:
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)
    devices = math.prod(mesh.shape[name] for name in axes)
    if devices == 1 or jax.tree.leaves(operands)[0].shape[0] % devices:
        return function
    split = PartitionSpec(axes)
    # What a kernel gives does not say how it varies over the devices.
    return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, axis_names=set(axes), check_vma=False)
