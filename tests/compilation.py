"""Counts what XLA compiles."""

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def compiled_programs() -> Iterator[collections.Counter[str]]:
    """While entered, the counter counts the programs that XLA compiles, by the name of the function that was given to `jax.jit`."""
    names: collections.Counter[str] = collections.Counter()

    def note(event: str, _: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names[details["fun_name"].removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
