"""Stopping a run by a signal (SIGTERM, Ctrl-C, a closed terminal), at one step in all processes."""

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
    """A signal has ended work that changes nothing, such as an evaluation."""


class Interruption:
    """A context in which the first signal is only recorded, and a second one ends the process.

    Attributes:
        wanted: whether a signal has been received.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._raises = False
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        # Only the main thread may set handlers; in another one the signals keep their usual
        # meaning.
        if threading.current_thread() is threading.main_thread():
            # Under nohup, a closed terminal must not stop the run.
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            handled = [number for number in SIGNALS if number != signal.SIGHUP or not ignored]
            self._handlers = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """A context in which a signal raises `Interrupted` at once.

        It raises the same at its start if a signal has been received before.
        """
        if self.wanted:
            raise Interrupted
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _record(self, number: int, _: FrameType | None) -> None:
        self.wanted = True
        self._restore_handlers()
        if signal.SIGHUP in self._handlers:
            # A closing terminal sends this signal more than once, without anybody asking to leave.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Logging is not safe here, because the signal may have come while a line was being logged.
        # The error is suppressed because the terminal may be gone.
        with contextlib.suppress(OSError):
            os.write(2, f"{signal.Signals(number).name}: saving and leaving; send it again to leave at once\n".encode())
        if self._raises:
            raise Interrupted


class Agreement:
    """Tells, without waiting, whether any process of the run wants to stop.

    Each process asks at every step and reads the answer a fixed number of steps later, so that all
    stop at the same step.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = split(mesh)
        self._local_devices = mesh.local_mesh.size
        self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))

    def ask(self, wanted: bool) -> jax.Array:
        """Returns the answer, a bool that the devices are still computing."""
        return self._any(jax.make_array_from_process_local_data(self._sharding, np.full(self._local_devices, wanted)))
