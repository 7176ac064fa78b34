"""Conversion between dataclasses and dotted keys, plain dicts and text.

Every error names the key that caused it.
"""

import ast
import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from jaxseg.errors import ConfigError, shortened
from jaxseg.files import is_file_name

C = TypeVar("C")


def _fields(kind: Any) -> dict[str, Any]:
    """Returns the type of each field of a dataclass, by the field's name."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def replace_key(node: Any, parts: list[str], value: Any, key: str) -> Any:
    """Returns a copy of a dataclass with the value at a dotted key replaced.

    Args:
        node: the dataclass.
        parts: the part of the key that lies below `node`, split at its dots.
        value: the new value, of the field's type or as text.
        key: the whole key, for messages.

    Raises:
        ConfigError: the key does not exist, or the value is not of the field's type.
    """
    hints = _fields(type(node))
    head, *rest = parts
    here = ".".join(key.split(".")[: -len(parts)]) or "config"
    if head not in hints:
        near = difflib.get_close_matches(head, hints, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"Unknown config key {key}: {here} has the keys {', '.join(hints)}.{hint}")
    if rest:
        child = getattr(node, head)
        if not dataclasses.is_dataclass(child):
            raise ConfigError(f"Unknown config key {key}: {head} is a single value and has no key {rest[0]}.")
        return dataclasses.replace(node, **{head: replace_key(child, rest, value, key)})
    return dataclasses.replace(node, **{head: _convert(value, hints[head], key)})


def _convert(value: Any, hint: Any, key: str) -> Any:
    """Converts a value to a field's type: parses text and widens numbers, and refuses the rest."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{key} = {shortened(value)} is not one of {', '.join(map(repr, args))}.")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if hasattr(hint, "kinds"):
            return _convert_group(value, hint.kinds(), key)
        if isinstance(value, Mapping):
            return from_dict(hint, value, key)  # type: ignore[arg-type]
        raise ConfigError(f"{key} is a group of keys; set one of them: {', '.join(_fields(hint))}.")
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return _convert(value, option, key)
            except ConfigError:
                continue
        raise ConfigError(f"{key} = {shortened(value)} is not of type {hint}.")
    if hint is str:
        if isinstance(value, str) and is_file_name(value):
            return value
        if isinstance(value, str):
            raise ConfigError(f"{key} = {value!r} holds a NUL or half of a surrogate pair, which no name may hold.")
        raise ConfigError(f"{key} = {shortened(value)} is a {type(value).__name__}; it must be text.")
    if isinstance(value, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
        # Deeply nested brackets raise the last two.
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ConfigError(f"{key} = {shortened(value)} is not a {_type_name(hint)}.") from None
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} = {shortened(value)} is not a {_type_name(hint)}; write it as (a, b, ...).")
        return tuple(_convert(item, args[0], f"{key}[{i}]") for i, item in enumerate(value))
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
        return int(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, key)
    raise ConfigError(f"{key} = {shortened(value)} is not a {_type_name(hint)}.")


def _finite(value: float, key: str) -> float:
    """Returns a number as a float, and refuses infinity and integers beyond the largest float."""
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ConfigError(f"{key} = {shortened(value)} is not a finite number.")
    return float(value)


def _convert_group(value: Any, kinds: Mapping[str, Any], key: str) -> Any:
    """Converts a mapping to the one of several dataclasses that its key `kind` names."""
    if isinstance(value, Mapping):
        known = ", ".join(map(repr, kinds))
        if "kind" not in value:
            raise ConfigError(f"{key}.kind is missing; it must be one of {known}.")
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in kinds:
            raise ConfigError(
                f"{key}.kind = {shortened(kind)} is not one of {known}. If it is a detector of your own, "
                "name a config file (--config FILE) that imports it."
            )
        return from_dict(kinds[kind], value, key)
    raise ConfigError(f"{key} is a group of keys; set one of them, or take another config file for another kind of model.")


def _type_name(hint: Any) -> str:
    return {bool: "true or false", int: "whole number", float: "number"}.get(hint, "list")


def require(condition: bool, key: str, value: Any, right: str) -> None:
    """Raises a `ConfigError` unless a condition on a value holds.

    Args:
        condition: whether the value is valid.
        key: the dotted name of the value, for the message.
        value: the value, for the message.
        right: the valid values in words, to complete "it must be ...".
    """
    if not condition:
        raise ConfigError(f"{key} = {shortened(value)} is out of range; it must be {right}.")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the config as plain dicts, lists and numbers, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[C], values: Mapping[str, Any], key: str = "") -> C:
    """Builds a config from plain values; this is the inverse of `to_dict`.

    Args:
        kind: the dataclass to build.
        values: its values by the names of its fields; missing fields take their defaults.
        key: the dotted name of this group, for messages.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key or 'The configuration'} is a {type(values).__name__}; it must be a group of keys with values.")
    hints = _fields(kind)
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in hints:
            raise ConfigError(f"Unknown config key {prefix}{name}: {key or 'config'} has the keys {', '.join(hints)}.")
    return kind(**{name: _convert(value, hints[name], f"{prefix}{name}") for name, value in values.items()})


def show(config: Any, key: str = "config") -> str:
    """Returns the config as text, with one `key = value` per line as on the command line."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lines.append(show(value, f"{key}.{field.name}") if dataclasses.is_dataclass(value) else f"{key}.{field.name} = {value!r}")
    return "\n".join(lines)
