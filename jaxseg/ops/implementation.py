"""Which implementation of an operation runs: the one its caller names, else the environment's, else the best there is.

- "auto", or None: the choice is left to us.
- "xla": plain JAX, for any backend.
- "mosaic_gpu": a Pallas kernel, for NVIDIA GPUs of compute capability 9.0 and later. Elsewhere nothing chooses it.
"""

import os
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from jaxseg.devices import on_each_device, platform
from jaxseg.errors import UserError

Implementation = Literal["auto", "xla", "mosaic_gpu"]
NAMES: tuple[str, ...] = get_args(Implementation)
ENVIRONMENT = "JAXSEG_IMPLEMENTATION"
COMPUTE_CAPABILITY = 9.0


class ImplementationError(UserError):
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

    On a mesh each device does its part of the batch, see `ops.devices`.

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
        return on_each_device(kernel)(*operands)
    if name is not None or obstacle or missing_gpu():
        return on_each_device(plain)(*operands)
    # A process with GPUs may compile for its CPU, too.
    return jax.lax.platform_dependent(*operands, cuda=on_each_device(kernel), default=on_each_device(plain))
