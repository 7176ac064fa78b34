"""What the readers and writers of weights share: their error, and files that are whole or not there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxseg import files
from jaxseg.errors import UserError


class WeightsError(UserError):
    """Weights that cannot be read, or that do not fit the model; the message says what is wrong and what would be right."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new binary file, which takes the place of `path` when it is complete.

    Raises:
        WeightsError: where it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as file:
            yield file
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror or error}); choose another file.") from None
