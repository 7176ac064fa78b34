"""Computing on many devices and hosts: joining the processes, the mesh, and sharding.

Batches are split along the only axis of the mesh, and everything else is copied to each device.
Computations on one image run on the device that has the image. XLA's partitioner finds this by
itself for most operations, but not for kernels, sorting and loops: there it would copy all images
to each device, or synchronise the devices in every iteration.
"""

import contextvars
import functools
import glob
import importlib.util
import logging
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

from jaxseg.errors import ConfigError
from jaxseg.structures import Batch

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PLATFORM: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)

AXIS = "data"
# The variables that SLURM sets for each process of `srun`. Without `srun`, a batch script lacks
# some.
_SLURM_STEP = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def initialize_distributed(timeout: int = 300) -> None:
    """Joins the other processes of this run, if the environment names any.

    It must be called before JAX uses a device. It considers, in this order, JAX_COORDINATOR_ADDRESS
    (host:port) with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a SLURM step with several tasks; and a
    Cloud TPU pod. On a single machine it returns at once.

    Args:
        timeout: the time in seconds to wait for the other processes, after which JAX ends this one.

    Raises:
        ConfigError: the environment is incomplete.
    """
    explicit = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if explicit:
        count, index = (_whole_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        if not 0 <= index < count:
            raise ConfigError(
                f"JAX_PROCESS_ID = {index} is out of range; it must be 0 to {count - 1}, because JAX_NUM_PROCESSES is {count}."
            )
        if count > 1:
            _join(f"{count} processes at {explicit}", timeout, coordinator_address=explicit, num_processes=count, process_id=index)
    elif all(name in os.environ for name in _SLURM_STEP):
        count = _whole_number("SLURM_NTASKS")
        if count > 1:
            _join(f"{count} SLURM tasks", timeout)
    elif _is_tpu_machine():
        hosts = (os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or "").split(",")
        several_slices = os.environ.get("MEGASCALE_NUM_SLICES", "1") != "1"
        # Without names in the environment, JAX asks the metadata server of the Cloud TPU, which
        # also works for a single host.
        if hosts == [""] or len(hosts) > 1 or several_slices:
            _join("all hosts of this TPU pod" if hosts == [""] or several_slices else f"{len(hosts)} hosts", timeout)


def _join(whom: str, timeout: int, **arguments: Any) -> None:
    # If they do not come, JAX ends the process without a clear message, so this line must explain.
    logger.info("waiting for %s, %d seconds at most; the same command has to run on each", whom, timeout)
    jax.distributed.initialize(initialization_timeout=timeout, **arguments)


def _whole_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise ConfigError(f"The environment variable {name} = {value!r} is not a whole number; each process of a run needs it.")
    return int(value)


def _is_tpu_machine() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return "tpu" in platforms and bool(chips) and importlib.util.find_spec("libtpu") is not None


def make_mesh() -> Mesh:
    """Makes the mesh of all devices of all processes along one axis, `AXIS`."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a full copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch_size(batch_size: int, mesh: Mesh, key: str) -> None:
    """Raises ConfigError if the global batch cannot be split evenly over the devices."""
    devices = mesh.size
    if batch_size % devices:
        fitting = -(-batch_size // devices) * devices
        raise ConfigError(
            f"{key} = {batch_size} cannot be split evenly over {devices} devices; use a multiple of {devices}, such as {fitting}."
        )


def to_global(batch: Batch, mesh: Mesh) -> Batch:
    """Makes global arrays on the devices from this process's part of a batch, in NumPy."""
    sharding = split(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def on_mesh(function: Callable[..., T], mesh: Mesh) -> Callable[..., T]:
    """Wraps a function to be compiled for a mesh.

    Within it, `on_each_device` and `platform` know the devices of the mesh.
    """

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
    """Returns the platform that is compiled for: "cpu", "gpu" or "tpu".

    It is that of the mesh of `on_mesh`, or else the default one of this process.
    """
    return _PLATFORM.get() or jax.default_backend()


def on_each_device(function: Callable[..., T], group: int = 1) -> Callable[..., T]:
    """Wraps a function of a batch to be called on each device's part of the batch.

    The devices are those of the current mesh's `Auto` axes. Without a mesh, or if the batch cannot
    be split evenly, the function is called with the whole batch.

    Args:
        function: a function from arrays, or trees of arrays, to such; the first axis of each is the
            batch.
        group: the number of adjacent images that must stay on one device.
    """

    @functools.wraps(function)
    def shared_out(*operands: Any) -> T:
        mesh = jax.sharding.get_abstract_mesh()
        axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto)
        devices = math.prod(mesh.shape[name] for name in axes)
        if devices == 1 or jax.tree.leaves(operands)[0].shape[0] % (devices * group):
            return function(*operands)
        split = PartitionSpec(axes)
        # The results of kernels lack the type information that `check_vma` needs.
        return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, axis_names=set(axes), check_vma=False)(*operands)

    return shared_out


def each_image(function: Callable[..., T]) -> Callable[..., T]:
    """Wraps a function of one image to be called on a batch: `jax.vmap` on each device."""
    return on_each_device(jax.vmap(function))
