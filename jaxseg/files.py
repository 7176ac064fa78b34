"""Files that are read and written everywhere: JSON with its errors in sentences, and files that are whole or not there."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxseg.errors import UserError


def is_file_name(text: str) -> bool:
    """Whether a file can have this name: there is no NUL in it, nor half of a surrogate pair."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def make_folder(folder: Path, name: str, error: type[UserError]) -> None:
    """Makes a folder, if need be.

    Args:
        folder: its path.
        name: what the user calls it, such as "--output".
        error: the kind of mistake that it is, where it cannot be made.

    Raises:
        error: in one sentence.
    """
    if not is_file_name(str(folder)):
        raise error(f"{name} {str(folder)!r} is no name that a folder can have.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise error(f"{name} {folder} cannot be made a folder ({reason.strerror}); choose another.") from None


def read_json(path: Path, error: type[UserError]) -> Any:
    """The content of a JSON file.

    Raises:
        error: the file cannot be read, or is no JSON; one sentence with its name.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as reason:
        raise error(f"{path} is not valid JSON: line {reason.lineno}, column {reason.colno}: {reason.msg}.") from None
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not valid JSON: byte {reason.start} is not UTF-8.") from None
    except RecursionError:
        raise error(f"{path} cannot be used: its lists or objects are nested too deeply.") from None
    # A whole number of over 4,300 digits, or a name that no file can have.
    except ValueError as reason:
        raise error(f"{path} cannot be used: {str(reason).split(';')[0]}.") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new binary file, which takes the place of `path` when it is complete and on the disk.

    Raises:
        OSError: it cannot be written; `path` is then as it was before.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # What a full disk raises names no file.
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, UTF-8, that is either the old one or the new one, whenever the process ends.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())
