"""The functions with which benchmarks time the work of a device, and measure its limits."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Times(NamedTuple):
    """Milliseconds of one operation: the median and the 10th and 90th percentile of rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Times":
        return cls(*(float(value) for value in np.percentile(milliseconds, (10, 50, 90))))

    def __str__(self) -> str:
        digits = 1 if self.median >= 100 else 3
        return f"{self.median:.{digits}f} ms ({self.low:.{digits}f} to {self.high:.{digits}f})"


def measure(
    run: Callable[[], Any],
    operations: int = 1,
    *,
    wait: Callable[[Any], Any] = jax.block_until_ready,
    rounds: int = 10,
    seconds: float = 0.03,
) -> Times:
    """Times calls of `run` in several rounds, after a warm-up.

    A round calls it again and again without waiting, and then waits for the last call. So the time
    that Python needs to start a call counts only where the device is faster than that.

    Args:
        run: a function that starts the work, and returns a result to wait for.
        operations: the number of operations that one call starts.
        wait: a function that returns when a result and all earlier ones are available.
        rounds: the number of rounds.
        seconds: the approximate time of a round.
    """

    def time_calls(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            result = run()
        wait(result)
        return time.perf_counter() - start

    time_calls(2)
    calls = max(1, math.ceil(seconds / (time_calls(3) / 3)))
    return Times.of([1e3 * time_calls(calls) / calls / operations for _ in range(rounds)])


def in_turn(operation: Callable[..., Any], sets: Sequence[Any]) -> list[Any]:
    """Calls `operation(*operands)` for each set of operands, one after the other in one program.

    With several sets, a cache cannot hold all of them, and a call of the program starts several
    operations. Without the barriers XLA would fuse small steps of different sets.
    """
    results: list[Any] = []
    for operands in sets:
        if results:
            operands, results[-1] = jax.lax.optimization_barrier((operands, results[-1]))
        results.append(operation(*operands))
    return results


def copy_bandwidth() -> float:
    """Measures the bytes per second, read and written, of a copy of an array larger than caches."""
    size = 2**29 if jax.default_backend() == "gpu" else 2**24
    array = jax.random.normal(jax.random.key(0), (size,))
    copy = functools.partial(jax.jit(lambda x: x + 1.0), array)
    return 2 * array.nbytes / (1e-3 * measure(copy).median)


def matrix_product_rate(dtype: Any) -> float:
    """Measures the floating-point operations per second of a large product of random matrices."""
    side = 8192 if jax.default_backend() == "gpu" else 1024
    a, b = (jax.random.normal(key, (side, side), dtype) for key in jax.random.split(jax.random.key(0)))
    return 2 * side**3 / (1e-3 * measure(functools.partial(jax.jit(jnp.matmul), a, b)).median)


def describe_device() -> str:
    """Describes the device, and the versions that affect its speed."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    return f"{device.device_kind}{f', compute capability {capability}' if capability else ''}; jax {jax.__version__}"
