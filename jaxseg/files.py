"""Reading JSON, with one-sentence errors, and writing files that are never incomplete."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxseg.errors import UserError


def is_file_name(text: str) -> bool:
    """Whether a file can have this name, which may hold no NUL and no half of a surrogate pair."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def make_folder(folder: Path, name: str, error: type[UserError]) -> None:
    """Makes a folder if it does not exist.

    Args:
        folder: the folder.
        name: the user's name for it, for example "--output".
        error: the type of the error if it cannot be made.

    Raises:
        error: the folder cannot be made; the message is one sentence.
    """
    if not is_file_name(str(folder)):
        raise error(f"{name} {str(folder)!r} is no name that a folder can have.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise error(f"{name} {folder} cannot be made a folder ({reason.strerror}); choose another.") from None


def read_json(path: Path, error: type[UserError]) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        error: the type of the error if it cannot be read.

    Raises:
        error: the file cannot be read or is not JSON; the message is one sentence with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as reason:
        raise error(f"{path} is not valid JSON: line {reason.lineno}, column {reason.colno}: {reason.msg}.") from None
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not valid JSON: byte {reason.start} is not UTF-8.") from None
    except RecursionError:
        raise error(f"{path} cannot be used: its lists or objects are nested too deeply.") from None
    # Integers of more than 4,300 digits and invalid file names raise this.
    except ValueError as reason:
        raise error(f"{path} cannot be used: {str(reason).split(';')[0]}.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new binary file, which replaces `path` when it is complete and on the disk.

    Raises:
        OSError: the file cannot be written; `path` is then unchanged.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # The error of a full disk does not name the file.
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8.

    Even if the process is killed, the file holds either the old text or the new one.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())
