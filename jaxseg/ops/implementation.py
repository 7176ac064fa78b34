"""The choice of the implementation of an operation.

The caller or the environment can name it:

- "auto", or None: the best implementation for the platform.
- "xla": plain JAX, for any backend.
- "mosaic_gpu": a Pallas kernel for NVIDIA GPUs of compute capability 9.0 and later. By default it
  runs on these GPUs only.
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
    """An implementation does not exist or cannot run; the message gives the reason and a remedy."""


def named(implementation: str | None) -> str | None:
    """Returns the implementation that the caller or else the environment names, or None.

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
    """Returns why this process has no GPU for the kernels, or None if it has one."""
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
    """Raises an error if this process cannot run the requested implementation.

    Args:
        implementation: the value of the configuration.
        key: the name of that value in messages.

    Raises:
        ImplementationError: the configuration or the environment requests kernels, and they cannot
            run in this process.
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

    On a mesh each device processes its part of the batch, see `jaxseg.devices.on_each_device`.

    Args:
        implementation: the name of the implementation, see the module's docstring.
        operands: arrays and trees of arrays, with the batch as the first axis of each.
        kernel: the function for GPUs.
        plain: the function for any backend.
        obstacle: the reason why the kernel does not support these operands, as the second half of a
            sentence, or None.

    Raises:
        ImplementationError: the kernel is requested by name and does not support the operands, or
            the environment names an implementation that does not exist.
    """
    name = named(implementation)
    if name == "mosaic_gpu":
        if obstacle:
            raise ImplementationError(f'implementation "mosaic_gpu" cannot do this: {obstacle}; "xla" can.')
        return on_each_device(kernel)(*operands)
    if name is not None or obstacle or missing_gpu():
        return on_each_device(plain)(*operands)
    # A process with GPUs can also compile a program for its CPU.
    result: T = jax.lax.platform_dependent(*operands, cuda=on_each_device(kernel), default=on_each_device(plain))
    return result
