"""Which of a dataset's categories are used, and what they are called."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxseg.data.sources.dataset import DataError, logger
from jaxseg.errors import shortened

# Names or ids that a message lists.
_LISTED = 100

# Characters of a name.
_LONGEST_TOLD = 200


def told(name: str) -> str:
    """A name for a message, in quotes where it is long or odd."""
    return name if name.isprintable() and len(name) <= _LONGEST_TOLD else shortened(name)


def listed(values: Iterable[object]) -> str:
    """Names or ids for a message; only the first of very many."""
    shown = [told(str(value)) for value in itertools.islice(values, _LISTED + 1)]
    return ", ".join([*shown[:_LISTED], "..."] if len(shown) > _LISTED else shown)


def distinct_names(names: Mapping[int, str], where: object) -> dict[int, str]:
    """Category names by id, with the id behind those that several share; tells so in the log."""
    shared = [name for name, count in Counter(names.values()).items() if count > 1]
    if shared:
        logger.warning("%s has several categories of one name, which get their ids behind it: %s.", where, listed(shared))
    distinct = dict(names)
    # Again, in case that a category is called what another one is now.
    while again := {name for name, count in Counter(distinct.values()).items() if count > 1}:
        distinct = {number: f"{name} (id {number})" if name in again else name for number, name in distinct.items()}
    return distinct


def choose_categories(
    categories: Mapping[int, str], path: Path, wanted_ids: Sequence[int], wanted_names: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Category ids in use, and their names, from all that the file has.

    Raises:
        DataError: it has none, or none of those that the config wants, or calls one differently.
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
            f"{path} has none of the categories {listed(wanted_ids)} that data.category_ids of the config asks for; "
            f"it has {listed(sorted(names)) or 'none'}."
        )
    return tuple(wanted_ids), tuple(wanted_names) or tuple(names.get(number, str(number)) for number in wanted_ids)
