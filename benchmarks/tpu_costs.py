"""The memory and the estimated time of a program, according to XLA's compiler for TPUs.

No TPU is needed. The compiler estimates the cycles of most operations, and `compile_for` adds them
up, with those of a loop multiplied by its iterations. It has no estimate for gathers and scatters
of rows; these count with the cycles per row of its final schedule (for rows of 256 float32 numbers
on v5e, with the table in vector memory). The figures include neither the time of waiting for other
memory nor the overlap of operations. So they are useful to compare forms, but not as absolute
times.
"""

import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

TOPOLOGIES = {"v5e": "v5e:2x2", "v4": "v4:2x2x1"}
# Cycles per second: the bfloat16 operations per second of the vendor's data sheet (197 T and 275 T)
# over those of all matrix units per cycle. There are 4 units on v5e and 8 on v4, with 128 x 128
# multiplications and additions each.
CLOCK = {"v5e": 197e12 / (4 * 128 * 128 * 2), "v4": 275e12 / (8 * 128 * 128 * 2)}
BYTES_PER_SECOND = {"v5e": 819e9, "v4": 1228e9}
GATHER_CYCLES, SCATTER_CYCLES = 4, 17


class Cost(NamedTuple):
    """The cost of one call on one chip."""

    seconds: float
    temporary_bytes: int
    gathered_rows: int
    scattered_rows: int
    compile_seconds: float


def require_libtpu() -> None:
    """Ends the program with one sentence if there is no compiler for TPUs."""
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("This compiles for TPUs, which takes libtpu (Linux on x86-64): pip install libtpu")
    # No chip is used, so no metadata server needs to be queried, and other processes can compile.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def chip(generation: str) -> Any:
    """Returns a device of "v5e" or "v4" for the compiler."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(TOPOLOGIES[generation], platform="tpu").devices[0]


def compile_for(generation: str, function: Callable[..., Any], *arguments: Any, turns: int = 1) -> Cost:
    """Estimates the cost of a function on one chip.

    Args:
        generation: "v5e" or "v4".
        function: the function, which is compiled.
        arguments: its arguments, which may be abstract.
        turns: the total number of iterations of loops whose end depends on data.
    """
    sharding = SingleDeviceSharding(chip(generation))
    started = time.perf_counter()
    compiled = jax.jit(function, in_shardings=sharding, out_shardings=sharding).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    cycles, gathered, scattered = _add_up(_computations(compiled.as_text()), "ENTRY", turns)
    cycles += GATHER_CYCLES * gathered + SCATTER_CYCLES * scattered
    temporary_bytes = compiled.memory_analysis().temp_size_in_bytes
    return Cost(cycles / CLOCK[generation], temporary_bytes, gathered, scattered, compile_seconds)


def _computations(text: str) -> dict[str, list[str]]:
    """Returns the lines of each computation of a program by its name; "ENTRY" is the main one."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = found["ENTRY" if header[1] else header[2]] = []
        else:
            lines.append(line)
    return found


def _called(line: str, role: str) -> str:
    """Returns the computation that an operation calls as `body`, `condition` or `calls`."""
    found = re.search(rf"{role}=%?([\w.\-]+)", line)
    assert found, line
    return found[1]


def _add_up(computations: dict[str, list[str]], name: str, turns: int) -> tuple[int, int, int]:
    """Adds up the cycles, gathered rows and scattered rows of a computation with its loops."""
    total = (0, 0, 0)
    lines = computations[name]
    loops = [line for line in lines if " while(" in line]
    open_ended = sum(_limit(computations, line) is None for line in loops)
    for line in lines:
        estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
        # If the compiler has no estimate, it writes the largest possible number.
        more = (int(estimate[1]) if estimate and int(estimate[1]) < 2**40 else 0, 0, 0)
        if line in loops:
            limit = _limit(computations, line)
            count = turns / open_ended if limit is None else limit
            inner = _add_up(computations, _called(line, "body"), turns)
            more = (int(count * inner[0]), int(count * inner[1]), int(count * inner[2]))
        elif "kind=kCustom" in line:
            more = (more[0], *_moved_rows(computations, _called(line, "calls")))
        total = (total[0] + more[0], total[1] + more[1], total[2] + more[2])
    return total


def _limit(computations: dict[str, list[str]], loop: str) -> int | None:
    """Returns the iterations of a loop whose condition compares a counter with a constant."""
    condition = computations[_called(loop, "condition")]
    numbers = [int(number[1]) for line in condition if (number := re.search(r"s32\[\]\S* constant\((\d+)\)", line))]
    return numbers[0] if len(numbers) == 1 else None


def _moved_rows(computations: dict[str, list[str]], name: str) -> tuple[int, int]:
    """Returns the numbers of rows that a fused computation gathers and scatters.

    Only rows of 128 numbers or more count.
    """
    gathered = scattered = 0
    lines = computations[name]
    for line in lines:
        if " fusion(" in line:
            inner = _moved_rows(computations, _called(line, "calls"))
            gathered, scattered = gathered + inner[0], scattered + inner[1]
        elif gather := re.search(r"= (\S+) gather\(.*slice_sizes=\{([\d,]+)\}", line):
            length = math.prod(int(size) for size in gather[2].split(","))
            gathered += _size(gather[1]) // length if length >= 128 else 0
        elif scatter := re.search(r" scatter\(%[\w.\-]+, %([\w.\-]+),", line):
            (indices,) = [text for text in lines if re.match(rf"\s+(ROOT )?%{re.escape(scatter[1])} = ", text)]
            scattered += _size(indices.split(" = ")[1])
    # The rows that a scatter reads in their order are a part of the scatter's cost.
    return (0, scattered) if scattered else (gathered, 0)


def _size(shape: str) -> int:
    """Returns the number of elements of the array whose type is at the start of a line."""
    found = re.match(r"\w+\[([\d,]*)\]", shape)
    assert found, shape
    return math.prod(int(side) for side in found[1].split(",") if side)
