"""Counts the programs that XLA compiles."""

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def compiled_programs() -> Iterator[collections.Counter[str]]:
    """Yields a counter of the programs that XLA compiles while the context is active.

    The keys are the names of the functions that were given to `jax.jit`.
    """
    names: collections.Counter[str] = collections.Counter()

    def note(event: str, _: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names[details["fun_name"].removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
