"""SIGTERM, Ctrl-C and a closed terminal as a wish that training asks about, agreed upon by all processes of a run."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.devices import replicated, split

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(BaseException):
    """Work that changes nothing, such as an evaluation, was broken off by a signal."""


class Interruption:
    """While it is entered, a first signal is noted, and a second one ends the process as it always does.

    Attributes:
        wanted: a signal has come.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._breaks_off = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        # Only the main thread may set handlers; in another one the signals keep their usual meaning.
        if threading.current_thread() is threading.main_thread():
            # Under nohup a closed terminal is to mean nothing.
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            heard = [number for number in SIGNALS if number != signal.SIGHUP or not ignored]
            self._handlers = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """While it is entered, a signal raises `Interrupted` at once; and on entering, where one has come before."""
        if self.wanted:
            raise Interrupted
        self._breaks_off = True
        try:
            yield
        finally:
            self._breaks_off = False

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self.wanted = True
        self._put_back()
        if signal.SIGHUP in self._handlers:
            # A closing terminal sends it more than once, and nobody is there to mean the second one.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Not through logging: the signal may have come in the middle of a line. The terminal may be gone.
        with contextlib.suppress(OSError):
            os.write(2, f"{signal.Signals(number).name}: saving and leaving; send it again to leave at once\n".encode())
        if self._breaks_off:
            raise Interrupted


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
