"""Values that people wrote, in TOML or as `section.field=value`, to frozen dataclasses: typed and checked.

What is wrong is one line that names the field, the value and what is allowed.
"""

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

from pipeline.errors import UserError

Check = tuple[Callable[[Any], bool], str]
POSITIVE: Check = (lambda value: 0 < value < math.inf, "a number above 0")
POSITIVES: Check = (lambda value: bool(value) and min(value) > 0, "one or more numbers above 0")
NOT_NEGATIVE: Check = (lambda value: value >= 0, "0 or more")
SHARE: Check = (lambda value: 0 <= value < 1, "at least 0 and below 1")
PROBABILITY: Check = (lambda value: 0 <= value <= 1, "0 to 1")
RANGE: Check = (lambda value: 0 <= value[0] <= value[1], "two numbers, 0 <= low <= high")
QUALITY: Check = (lambda value: 0 <= value <= 95, "0 for none, or 1 to 95")
NAME: Check = (bool, "a name")
FILE_NAME: Check = (
    lambda value: re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", value),
    "letters, digits, -, _ and ., beginning with a letter or a digit, 100 at most",
)
NAMES: Check = (bool, "one or more names of layers")
BY_SUFFIX = {"range": RANGE, "probability": PROBABILITY}  # for fields of `nasa`, which carry no checks


def checked(default: Any, check: Check, **more: Any) -> Any:
    return field(default=default, metadata={"check": check}, **more)


def read(cls: Any, text: str, overrides: Sequence[str], where: str) -> Any:
    """An object of the dataclass `cls`, of the TOML `text` with the overrides applied."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    return _build(cls, values, "")


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise UserError(f"--set: {override!r} has no value; allowed: section.field=value")
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set: {key!r} is no field of a recipe")
    try:
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text.strip()


def _build(cls: Any, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{path.rstrip('.')}: {values!r} is not allowed; it is a section with fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f"{path}{name}: no such field; allowed: {', '.join(fields)}")
    built = {name: _convert(value, hints[name], fields[name], path + name) for name, value in values.items()}
    try:
        return cls(**built)
    except ValueError as error:  # of `nasa`'s own checks
        raise UserError(f"{path}{error}") from None


def _convert(value: Any, hint: Any, spec: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path + ".")
    converted = _typed(value, hint, path)
    check: Check | None = spec.metadata.get("check") or BY_SUFFIX.get(path.rpartition("_")[2])
    if check and not check[0](converted):
        raise UserError(f"{path}: {value!r} is not allowed; allowed: {check[1]}")
    return converted


def _typed(value: Any, hint: Any, path: str) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise UserError(f"{path}: {value!r} is not allowed; allowed: {', '.join(typing.get_args(hint))}")
        return value
    if typing.get_origin(hint) is tuple:
        item, *rest = typing.get_args(hint)
        if dataclasses.is_dataclass(item):
            return _several(item, value, path)
        fixed = len(rest) and rest != [types.EllipsisType] and rest != [Ellipsis]
        if not isinstance(value, list) or (fixed and len(value) != 1 + len(rest)):
            raise UserError(f"{path}: {value!r} is not allowed; allowed: a list of {item.__name__}")
        return tuple(_typed(entry, item, path) for entry in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{path}: {value!r} is not allowed; allowed: {_describe(hint)}")
    return value


def _several(item: Any, value: Any, path: str) -> Any:
    if not isinstance(value, list):
        raise UserError(f"{path}: {value!r} is not allowed; allowed: sections [[{path}]]")
    return tuple(_build(item, entry, f"{path}[{number}].") for number, entry in enumerate(value))


def _describe(hint: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
