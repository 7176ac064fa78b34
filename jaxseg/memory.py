"""How much memory this machine has, for what would not fit is refused at the door."""

import os

from jaxseg.errors import UserError

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def physical_memory() -> int:
    """Bytes of memory that the machine has, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_units(size: float) -> str:
    """A number of bytes for a person to read, such as "37.3 GB"."""
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"


def require_memory(wanted: int, what: str, remedy: str, error: type[UserError], share: float = 1.0) -> None:
    """Raises `error` where something would take more than a share of the machine's memory.

    Args:
        wanted: bytes.
        what: the subject of the sentence.
        remedy: the end of the sentence.
        error: the kind of mistake that it is.
        share: of the machine's memory, that it may take.
    """
    limit = int(physical_memory() * share)
    if wanted > limit:
        raise error(
            f"{what} would take {in_units(wanted)} of memory, and {in_units(limit)} is the most that this machine allows; {remedy}."
        )
