"""The error of the readers and writers of weights, and the writing of whole files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxseg import files
from jaxseg.errors import UserError


class WeightsError(UserError):
    """Weights cannot be read or do not fit the model; the message says why and what to do."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a new binary file, which replaces `path` when it is complete.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            yield file
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror or error}); choose another file.") from None
