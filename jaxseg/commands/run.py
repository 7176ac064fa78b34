"""How every command of jaxseg ends: 0, or one sentence on stderr and an exit code that says what kind of end it was."""

import errno
import logging
import os
import sys
from collections.abc import Callable

import jax

from jaxseg.errors import UserError

# What is wrong with a disk or a path, and not with the program.
_DISK_ERRNOS = {
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "EEXIST", "EIO", "EISDIR", "ENAMETOOLONG", "ENOENT", "ENOSPC", "ENOTDIR", "EPERM", "EROFS", "EMFILE")
}

# Of a full disk, Orbax and its event loops log each array by itself with its stack, 800 lines around the sentence that counts.
_TALKATIVE = ("absl", "asyncio")


def run_command(body: Callable[[], int | None], *, log_to_stdout: bool = False) -> int:
    """Runs a command's body with jaxseg's log as plain lines, and answers every end that a user can cause with one sentence.

    Args:
        body: parses the arguments and does the work; its result is the exit code, None is 0.
        log_to_stdout: where the log goes; else to stderr.

    Returns:
        0 when all is done, or what `body` gave; 2 when the user's input, the disk or the memory does not allow it; 130 after Ctrl-C;
        141 when nobody reads the output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        # A file's name need not be text that the terminal can show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout if log_to_stdout else sys.stderr, force=True)
    logging.getLogger("jaxseg").setLevel(logging.INFO)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return body() or 0
    except UserError as error:
        return _explain(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        _explain("interrupted")
        return 130
    except BrokenPipeError:
        # Python would complain once more when it flushes at the end.
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
        # JAX's own sentence says which devices JAX_PLATFORMS asks for in vain.
        if "Unable to initialize backend" not in str(error):
            raise
        return _explain(f"{str(error).splitlines()[0]}; JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}.")


def _explain(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2
