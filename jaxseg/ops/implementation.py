"""Which implementation of an operation runs: the one its caller names, else the environment's, else the best there is.

- "auto", or None: the choice is left to us.
- "xla": plain JAX, for any backend.
- "mosaic_gpu": a Pallas kernel, for NVIDIA GPUs of compute capability 9.0 and later. Elsewhere nothing chooses it.
"""

import functools
import math
import os
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec, use_abstract_mesh

Implementation = Literal["auto", "xla", "mosaic_gpu"]
NAMES: tuple[str, ...] = get_args(Implementation)
ENVIRONMENT = "JAXSEG_IMPLEMENTATION"
COMPUTE_CAPABILITY = 9.0
T = TypeVar("T")


class ImplementationError(ValueError):
    """An implementation that does not exist, or cannot serve; the message says why, and which one can."""


def named(implementation: str | None) -> str | None:
    """The implementation somebody asks for: the caller, or else the environment; None leaves the choice to us.

    Raises:
        ImplementationError: when the environment names one that does not exist.
    """
    if implementation not in (None, "auto"):
        return implementation
    name = os.environ.get(ENVIRONMENT, "auto")
    if name not in NAMES:
        raise ImplementationError(f"The environment variable {ENVIRONMENT} = {name!r} is not one of {', '.join(NAMES)}.")
    return None if name == "auto" else name


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


def require_implementation(implementation: str | None, key: str) -> None:
    """Raises ImplementationError where `key` of the configuration, or the environment, asks for what this process cannot run."""
    name, missing = named(implementation), missing_gpu()
    if name == "mosaic_gpu" and missing:
        source = ENVIRONMENT if implementation in (None, "auto") else key
        raise ImplementationError(
            f"{source} = mosaic_gpu needs GPUs of NVIDIA with compute capability {COMPUTE_CAPABILITY} or more, but {missing}; "
            'leave it "auto", or set "xla".'
        )


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
        ImplementationError: when the kernel is asked for by name and cannot serve, or the environment's name is unknown.
    """
    name = named(implementation)
    if name == "mosaic_gpu":
        if obstacle:
            raise ImplementationError(f'implementation "mosaic_gpu" cannot do this: {obstacle}; "xla" can.')
        return _on_each_device(kernel, operands)(*operands)
    if name is not None or obstacle or missing_gpu():
        return plain(*operands)
    # A process with GPUs may compile for its CPU, too.
    return jax.lax.platform_dependent(*operands, cuda=_on_each_device(kernel, operands), default=plain)


def on_mesh(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """The function, to be compiled for a mesh: kernels in it know how the batch is spread over devices."""

    @functools.wraps(function)
    def within(*arguments: Any) -> T:
        with use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return within


def _on_each_device(function: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[..., Any]:
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)
    devices = math.prod(mesh.shape[name] for name in axes)
    if devices == 1 or jax.tree.leaves(operands)[0].shape[0] % devices:
        return function
    split = PartitionSpec(axes)
    # What a kernel gives does not say how it varies over the devices.
    return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, axis_names=set(axes), check_vma=False)
