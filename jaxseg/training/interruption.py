"""SIGTERM and Ctrl-C as a wish that training asks about, agreed upon by all processes of a run."""

import os
import signal
import threading
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.training.sharding import replicated, split

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """While it is entered, a first signal is noted, and a second one ends the process as it always does."""

    def __init__(self) -> None:
        self.wanted = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        # Only the main thread may set handlers; in another one the signals keep their usual meaning.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self.wanted = True
        # Not through logging: the signal may have come in the middle of a line.
        os.write(2, f"{signal.Signals(number).name}: saving and leaving; send it again to leave at once\n".encode())
        self._put_back()


class Agreement:
    """Answers, without waiting, whether any process of the run wants to stop.

    Each process asks at every step and reads the answer a fixed number of steps later, so that all stop at the same step.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = split(mesh)
        self._local_devices = mesh.local_mesh.size
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))

    def ask(self, wanted: bool) -> jax.Array:
        """The answer, as a bool still on its way on the devices."""
        return self._any(jax.make_array_from_process_local_data(self._sharding, np.full(self._local_devices, wanted)))
