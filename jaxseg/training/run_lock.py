"""The lock of a run folder, in which only one training may run at a time.

Two would mix their metrics and remove each other's checkpoints.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from jaxseg.config import ConfigError
from jaxseg.files import make_folder

logger = logging.getLogger(__name__)

LOCK = "train.lock"


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Makes a run folder if it does not exist, and locks it for this process.

    The operating system releases the lock when the process ends, in whatever way, so the file that
    a killed run leaves is harmless.

    Raises:
        ConfigError: another process trains in the folder (the message names its host and process
            id), or the folder cannot be written to.
    """
    make_folder(run_folder, "--workdir", ConfigError)
    try:
        file = _lock(run_folder / LOCK)
        file.truncate(0)
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        print(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "started": started}), file=file, flush=True)
    except OSError as error:
        raise ConfigError(f"--workdir {run_folder} cannot be written to ({error.strerror}); choose another.") from None
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (run_folder / LOCK).unlink()


def _lock(path: Path) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(f"{path.parent} is in use: {_holder(path)}; wait for its end, or choose another --workdir.") from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s); make sure that no other training uses this folder", path.parent, error.strerror)
        # The previous holder may have removed the file after it was opened here.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['process']} on {holder['host']} trains there since {holder['started']}"
    # The other process may be writing the file at this moment.
    except (OSError, ValueError, KeyError, TypeError):
        return "another process trains there"
