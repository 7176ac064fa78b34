"""The start and the end of the worker processes that make training batches."""

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

# Signals that are sent to a whole process group: Ctrl-C, a closed terminal, the end of a job.
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def first_element(elements: Iterator[Any]) -> Any:
    """Returns the first element of an iterator that starts worker processes to make it.

    The processes ignore the signals that end the run, so that the run itself decides when they end.
    """
    # Starting the resource tracker later would unblock the signals in the thread below.
    resource_tracker.ensure_running()
    # The blocked signals of a thread are inherited by the processes that it starts.
    starter = ThreadPoolExecutor(1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, _ENDING_SIGNALS))
    try:
        return starter.submit(next, elements).result()
    finally:
        starter.shutdown(wait=False)


def start_worker(index: int, count: int) -> None:
    """Prepares worker `index` of `count` before its first batch."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The workers already run in parallel, so OpenCV needs no threads of its own.
    cv2.setNumThreads(0)
    # If any code here uses a device, it must not be the accelerator that the run occupies.
    jax.config.update("jax_platforms", "cpu")


def _end_with_parent() -> None:
    """Ends this worker when the main process of the run has ended for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
