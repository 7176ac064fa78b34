"""Typed values: dataclasses from dotted keys, plain dicts and text, and back, with errors that name the key."""

from __future__ import annotations

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


def replace_key(node: Any, parts: list[str], value: Any, key: str) -> Any:
    hints = typing.get_type_hints(type(node))
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
    """The value as the field's type; text is parsed, numbers are widened, anything else is refused."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{key} = {shortened(value)} is not one of {', '.join(map(repr, args))}.")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, key)  # type: ignore[arg-type]
        raise ConfigError(f"{key} is a group of keys; set one of them: {', '.join(typing.get_type_hints(hint))}.")
    if origin in (Union, types.UnionType):
        kinds = {typing.get_args(typing.get_type_hints(option)["kind"])[0]: option for option in args if dataclasses.is_dataclass(option)}
        if kinds:
            return _convert_group(value, kinds, key)
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
            raise ConfigError(f"{key} = {value!r} holds a NUL or half of a surrogate pair, which no name can.")
        raise ConfigError(f"{key} = {shortened(value)} is a {type(value).__name__}; it must be text.")
    if isinstance(value, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
        # The last two are for brackets within brackets within brackets.
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
    """A number as float; 1e999 and whole numbers beyond it are none."""
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ConfigError(f"{key} = {shortened(value)} is not a finite number.")
    return float(value)


def _convert_group(value: Any, kinds: Mapping[str, Any], key: str) -> Any:
    """One of several groups of keys, told apart by their key `kind`; the first where it says none."""
    if isinstance(value, Mapping):
        kind = value.get("kind", next(iter(kinds)))
        if not isinstance(kind, str) or kind not in kinds:
            raise ConfigError(f"{key}.kind = {shortened(kind)} is not one of {', '.join(map(repr, kinds))}.")
        return from_dict(kinds[kind], value, key)
    if isinstance(value, tuple(kinds.values())):
        return value
    raise ConfigError(f"{key} is a group of keys; set one of them, or take another config file for another kind of model.")


def _type_name(hint: Any) -> str:
    return {bool: "true or false", int: "whole number", float: "number"}.get(hint, "list")


def require(condition: bool, key: str, value: Any, right: str) -> None:
    if not condition:
        raise ConfigError(f"{key} = {shortened(value)} is out of range; it must be {right}.")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists and numbers, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type[C], values: Mapping[str, Any], key: str = "") -> C:
    """The inverse of `to_dict`; unknown keys and wrong types raise `ConfigError`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key or 'The configuration'} is a {type(values).__name__}; it must be a group of keys with values.")
    hints = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in hints:
            raise ConfigError(f"Unknown config key {prefix}{name}: {key or 'config'} has the keys {', '.join(hints)}.")
    return kind(**{name: _convert(value, hints[name], f"{prefix}{name}") for name, value in values.items()})


def show(config: Any, key: str = "config") -> str:
    """The config, one `key = value` a line, spelled as the command line takes them."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        lines.append(show(value, f"{key}.{field.name}") if dataclasses.is_dataclass(value) else f"{key}.{field.name} = {value!r}")
    return "\n".join(lines)


def show_differences(config: Any) -> str:
    """The lines of `show` whose values are no defaults, `model` being compared with the defaults of its own kind."""
    usual = {*show(type(config)()).splitlines(), *show(type(config.model)(), "config.model").splitlines()}
    return "\n".join(line for line in show(config).splitlines() if line not in usual)
