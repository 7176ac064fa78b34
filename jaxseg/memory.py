"""The memory of this machine, and the refusal of requests that would not fit into it."""

import os

from jaxseg.errors import UserError

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def physical_memory() -> int:
    """Returns the size of the machine's memory in bytes, whether it is in use or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def in_units(size: float) -> str:
    """Formats a number of bytes for people, for example as "37.3 GB"."""
    for unit in _UNITS[:-1]:
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} {_UNITS[-1]}"


def require_memory(wanted: int, what: str, remedy: str, *, error: type[UserError], share: float = 1.0) -> None:
    """Raises an error if something would take more than a share of the machine's memory.

    Args:
        wanted: the number of bytes that it would take.
        what: its description, which is the subject of the message.
        remedy: the advice at the end of the message.
        error: the type of the error.
        share: the largest permitted fraction of the machine's memory.
    """
    limit = int(physical_memory() * share)
    if wanted > limit:
        raise error(
            f"{what} would take {in_units(wanted)} of memory, and {in_units(limit)} is the most that this machine allows; {remedy}."
        )
