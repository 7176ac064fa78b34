"""Which implementation of an operation runs: the caller names it, or the environment, or nobody.

Where nobody names one, it is the best there is.

- "auto", or None: the best implementation there is.
- "xla": plain JAX, for any backend.
- "mosaic_gpu": a Pallas kernel for NVIDIA GPUs of compute capability 9.0 and later. It is chosen
  there only.
"""

import os
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

import jax

from jaxseg.devices import on_each_device, platform
from jaxseg.errors import UserError

T = TypeVar("T")

Implementation = Literal["auto", "xla", "mosaic_gpu"]
NAMES: tuple[str, ...] = get_args(Implementation)
ENVIRONMENT = "JAXSEG_IMPLEMENTATION"
COMPUTE_CAPABILITY = 9.0


class ImplementationError(UserError):
    """An implementation does not exist or cannot run; the message says why, and which one can."""


def named(implementation: str | None) -> str | None:
    """The implementation that the caller names, or else the environment; None where neither does.

    Raises:
        ImplementationError: the environment names an implementation that does not exist.
    """
    if implementation not in (None, "auto"):
        return implementation
    name = os.environ.get(ENVIRONMENT, "auto")
    if name not in NAMES:
        raise ImplementationError(f"The environment variable {ENVIRONMENT} = {name!r} is not one of {', '.join(NAMES)}.")
    return None if name == "auto" else name


def missing_gpu() -> str | None:
    """Why this process has no GPU that the kernels run on; None where it has one."""
    if platform() != "gpu":
        return f"this process computes on {platform()}"
    for device in jax.local_devices():
        capability = str(getattr(device, "compute_capability", "unknown"))
        if not re.fullmatch(r"\d+\.\d+", capability):
            return f"{device.device_kind} is not a GPU of NVIDIA"
        if float(capability) < COMPUTE_CAPABILITY:
            return f"{device.device_kind} has compute capability {capability}, and {COMPUTE_CAPABILITY} is the least"
    return None


def require_implementation(implementation: str | None, key: str) -> None:
    """Raises an error where an implementation is asked for that this process cannot run.

    Args:
        implementation: the value of the configuration.
        key: the name of that value in messages.

    Raises:
        ImplementationError: the configuration or the environment asks for kernels, and they cannot
            run here.
    """
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
    kernel: Callable[..., T],
    plain: Callable[..., T],
    obstacle: str | None = None,
) -> T:
    """Calls `kernel(*operands)` or `plain(*operands)`, two functions with the same results.

    On a mesh each device does its part of the batch, see `jaxseg.devices.on_each_device`.

    Args:
        implementation: the implementation's name, see the module.
        operands: arrays, and trees of arrays, with the batch as the first axis of each.
        kernel: the function for GPUs.
        plain: the function for any backend.
        obstacle: why the kernel cannot take these operands, as the second half of a sentence; None
            where it can.

    Raises:
        ImplementationError: the kernel is asked for by name and cannot take the operands, or the
            environment names an implementation that does not exist.
    """
    name = named(implementation)
    if name == "mosaic_gpu":
        if obstacle:
            raise ImplementationError(f'implementation "mosaic_gpu" cannot do this: {obstacle}; "xla" can.')
        return on_each_device(kernel)(*operands)
    if name is not None or obstacle or missing_gpu():
        return on_each_device(plain)(*operands)
    # A process with GPUs may also compile a program for its CPU.
    result: T = jax.lax.platform_dependent(*operands, cuda=on_each_device(kernel), default=on_each_device(plain))
    return result
