"""The choice of a dataset's categories, and their names."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxseg.data.sources.dataset import DataError, logger
from jaxseg.errors import shortened

# The largest number of names or ids that a message lists.
_MAX_LISTED = 100

# The largest number of characters of a name in a message.
_MAX_LENGTH = 200


def printable(name: str) -> str:
    """Returns a name for a message, quoted and shortened if it is long or cannot be printed."""
    return name if name.isprintable() and len(name) <= _MAX_LENGTH else shortened(name)


def joined(values: Iterable[object]) -> str:
    """Joins names or ids for a message, which only lists the first of very many."""
    shown = [printable(str(value)) for value in itertools.islice(values, _MAX_LISTED + 1)]
    return ", ".join([*shown[:_MAX_LISTED], "..."] if len(shown) > _MAX_LISTED else shown)


def distinct_names(names: Mapping[int, str], where: object) -> dict[int, str]:
    """Appends the id to names that several categories have, and warns of it in the log.

    Args:
        names: the category names by id.
        where: the file or folder, for the message.

    Returns:
        Distinct names by id.
    """
    shared = [name for name, count in Counter(names.values()).items() if count > 1]
    if shared:
        logger.warning("%s has several categories of one name, which get their ids behind it: %s.", where, joined(shared))
    distinct = dict(names)
    # The loop is needed because a category may already have the new name of another one.
    while again := {name for name, count in Counter(distinct.values()).items() if count > 1}:
        distinct = {number: f"{name} (id {number})" if name in again else name for number, name in distinct.items()}
    return distinct


def choose_categories(
    categories: Mapping[int, str], path: Path, wanted_ids: Sequence[int], wanted_names: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Chooses the categories to use from those in a file.

    Args:
        categories: all names by id.
        path: the file, for messages.
        wanted_ids: the ids to use; if empty, all are used.
        wanted_names: the names that the file must give them, or nothing.

    Returns:
        The ids in ascending order, and their names.

    Raises:
        DataError: the file has no categories, none of the wanted ones, or another name for one.
    """
    names = distinct_names(categories, path)
    if not wanted_ids:
        if not names:
            raise DataError(f"{path} has no categories; it must list at least one, with id and name.")
        return tuple(sorted(names)), tuple(names[number] for number in sorted(names))
    for number, name in zip(wanted_ids, wanted_names, strict=bool(wanted_names)):
        if names.get(number, name) != name:
            flag = "--config.data.class_names=() --config.data.category_ids=()"
            raise DataError(
                f"{path} calls category {number} {shortened(names[number])}, but data.class_names of the config calls it {name!r}; "
                f"if these are your own classes, --config.model.num_classes={len(names)} {flag} reads their names from the file."
            )
    if not names.keys() & set(wanted_ids):
        raise DataError(
            f"{path} has none of the categories {joined(wanted_ids)} that data.category_ids of the config asks for; "
            f"it has {joined(sorted(names)) or 'none'}."
        )
    return tuple(wanted_ids), tuple(wanted_names) or tuple(names.get(number, str(number)) for number in wanted_ids)
