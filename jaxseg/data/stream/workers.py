"""Worker processes of the training data: how they start, and how they end."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import Any

import cv2
import jax

# Signals that reach a whole group of processes: Ctrl-C, a closed terminal, the end of a job.
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def first_element(elements: Iterator[Any]) -> Any:
    """The first element of an iterator that starts worker processes for it.

    The processes do not hear what ends the run, which decides by itself what happens to them.
    """
    # It would make the thread below hear again.
    resource_tracker.ensure_running()
    # Threads inherit which signals are heard, and so do the processes that they start.
    starter = ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _ENDING_SIGNALS))
    try:
        return starter.submit(next, elements).result()
    finally:
        starter.shutdown(wait=False)


def start_worker(index: int, count: int) -> None:
    """What worker `index` of `count` does before its first batch."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The workers are the threads.
    cv2.setNumThreads(0)
    # Should anything in here ask for a device, it must not be the accelerator that the run holds.
    jax.config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
    """Ends this worker when the run's own process is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
