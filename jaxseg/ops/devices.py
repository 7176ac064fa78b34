"""Batches that are spread over devices: what concerns one image is computed on the device that has it.

XLA's partitioner sees this by itself in most operations, but not in kernels, sorting and loops: it would bring all images to
each device, or let the devices wait for each other at every turn.
"""

import contextvars
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec, use_abstract_mesh

T = TypeVar("T")
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def on_mesh(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """The function, to be compiled for a mesh, so that `on_each_device` and `platform` within it know the devices."""

    @functools.wraps(function)
    def within(*arguments: Any) -> T:
        token = _PLATFORM.set(mesh.devices.flat[0].platform)
        try:
            with use_abstract_mesh(mesh.abstract_mesh):
                return function(*arguments)
        finally:
            _PLATFORM.reset(token)

    return within


def platform() -> str:
    """What is compiled for, "cpu", "gpu" or "tpu": the devices of `on_mesh`, or else those that this process computes on."""
    return _PLATFORM.get() or jax.default_backend()


def on_each_device(function: Callable[..., T], group: int = 1) -> Callable[..., T]:
    """The function of a batch, called on each device's part of it.

    Devices are those of the mesh around, where its axes are `Auto`; without a mesh, or where a batch cannot be shared out
    evenly, the function is called with the whole batch.

    Args:
        function: takes arrays, and trees of them, and gives such; the batch comes first in each.
        group: so many neighbouring images stay together.
    """

    @functools.wraps(function)
    def shared_out(*operands: Any) -> T:
        mesh = jax.sharding.get_abstract_mesh()
        axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)
        devices = math.prod(mesh.shape[name] for name in axes)
        if devices == 1 or jax.tree.leaves(operands)[0].shape[0] % (devices * group):
            return function(*operands)
        split = PartitionSpec(axes)
        # What a kernel gives does not say how it varies over the devices.
        return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, axis_names=set(axes), check_vma=False)(*operands)

    return shared_out


def each_image(function: Callable[..., T]) -> Callable[..., T]:
    """The function of one image, for a batch: `jax.vmap` on each device."""
    return on_each_device(jax.vmap(function))
