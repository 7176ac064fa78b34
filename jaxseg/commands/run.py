"""Runs a command so that it ends with 0, or with one sentence on stderr and an exit code."""

import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence

import jax

from jaxseg.errors import UserError

# These errors are caused by a disk or a path, not by the program.
_DISK_ERRNOS = {
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "EEXIST", "EIO", "EISDIR", "ENAMETOOLONG", "ENOENT", "ENOSPC", "ENOTDIR", "EPERM", "EROFS", "EMFILE")
}

# When a disk is full, these loggers write a stack trace for each array, 800 lines in all, which
# would hide the one sentence that matters.
_VERBOSE_LOGGERS = ("absl", "asyncio")


def run_command(body: Callable[[list[str]], int | None], arguments: Sequence[str] | None, *, log_to_stdout: bool = False) -> int:
    """Runs a command, and reports every error that a user can cause in one sentence on stderr.

    The log of jaxseg is written as plain lines.

    Args:
        body: the function that parses the arguments and does the work. It returns the exit code,
            where None means 0.
        arguments: the arguments of the command; None takes those of the process.
        log_to_stdout: whether to write the log to stdout instead of stderr.

    Returns:
        The exit code of `body`; 2 if the user's input, the disk or the memory prevents the work;
        130 after Ctrl-C; 141 if the reader of the output has closed it.
    """
    for stream in (sys.stdout, sys.stderr):
        # The terminal may be unable to display a character of a file name.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout if log_to_stdout else sys.stderr, force=True)
    logging.getLogger("jaxseg").setLevel(logging.INFO)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return body(list(sys.argv[1:] if arguments is None else arguments)) or 0
    except UserError as error:
        return _explain(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        _explain("interrupted")
        return 130
    except BrokenPipeError:
        # Without this, Python would report the error again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        return _explain(f"{type(error).__name__}: {error.strerror}{f': {error.filename}' if error.filename else ''}.")
    except MemoryError as error:
        return _explain(f"MemoryError: {error or 'there is not enough memory'}; try smaller pictures or a smaller batch_size.")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _explain(f"The devices have too little memory ({str(error).splitlines()[0][:200]}); try a smaller batch_size.")
    except RuntimeError as error:
        # JAX's own message names the missing devices, so it is shown to the user.
        if "Unable to initialize backend" not in str(error):
            raise
        return _explain(f"{str(error).splitlines()[0]}; JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}.")


def _explain(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2
