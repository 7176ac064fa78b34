"""What the readers and writers of weights share: their error, and files that are whole or not there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class WeightsError(ValueError):
    """Weights that cannot be read, or that do not fit the model; the message says what is wrong and what would be right."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new binary file, which takes the place of `path` when it is complete.

    Raises:
        WeightsError: where it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror or error}); choose another file.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
