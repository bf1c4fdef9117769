"""Recipes from TOML files, with inheritance by `base` and `section.field=value` overrides."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from pipeline.errors import UserError, invalid
from pipeline.recipe.schema import Recipe
from pipeline.recipe.section import Section
from pipeline.redaction import redact

RECIPES = Path(__file__).parent.parent / "recipes"
BASES = RECIPES / "bases"
_BASE = "base"
S = TypeVar("S", bound=Section)
_MAX_DEPTH = 8
TomlTable = dict[str, Any]
"""A table of a TOML file."""


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of this name, or of this TOML file, with the overrides applied."""
    return _build_recipe(_merge_base(_read(name, [RECIPES])), overrides)


def parse(text: str, overrides: Sequence[str] = (), *, where: str = "recipe") -> Recipe:
    """Return the recipe of a TOML text, with the overrides applied."""
    return _build_recipe(_merge_base((_parse(text, where), Path())), overrides)


def dump(recipe: Recipe) -> str:
    """Return the whole resolved recipe as TOML; `parse` gives the same recipe back."""
    return tomli_w.dumps(recipe.to_dict())


def parse_section(section: type[S], overrides: Sequence[str]) -> S:
    """Return a section of its defaults and `field=value` overrides."""
    return section.from_values(_apply_overrides({}, overrides))


def _build_recipe(values: TomlTable, overrides: Sequence[str]) -> Recipe:
    recipe = Recipe.from_values(_apply_overrides(values, overrides))
    for line in dump(recipe).splitlines():  # written to manifests, reports, model cards and MLflow
        if (shown := redact(line, {})) != line:
            raise UserError(f"recipe: {shown!r} holds a secret. Set it in the environment, as HF_TOKEN is.")
    return recipe


def _read(name: str, folders: Sequence[Path], relative_to: Path = Path()) -> tuple[TomlTable, Path]:
    """Return the values of a recipe by its name in one of `folders`, or of a TOML file, and that file's folder."""
    files = [folder / f"{name}.toml" for folder in folders]
    if name.endswith(".toml"):
        files = [relative_to / Path(name).expanduser()]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        known = ", ".join(sorted(path.stem for folder in folders for path in folder.glob("*.toml")))
        raise invalid("recipe", name, f"one of {known}, or the path of a .toml file")
    try:
        return _parse(file.read_text(encoding="utf-8"), str(file)), file.parent
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None


def _parse(text: str, where: str) -> TomlTable:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from error


def _merge_base(read: tuple[TomlTable, Path], depth: int = 0) -> TomlTable:
    """Merge a recipe's values over those of its base; lists replace lists."""
    values, folder = read
    name = values.pop(_BASE, None)
    if name is None:
        return values
    if not isinstance(name, str) or depth == _MAX_DEPTH:
        raise invalid(_BASE, name, f"a recipe's name or .toml file, at most {_MAX_DEPTH} deep")
    return _merge_tables(_merge_base(_read(name, [RECIPES, BASES], folder), depth + 1), values)


def _merge_tables(base: Mapping[str, Any], values: Mapping[str, Any]) -> TomlTable:
    merged = dict(base)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge_tables(merged[name], value) if both else value
    return merged


def _apply_overrides(values: TomlTable, overrides: Sequence[str]) -> TomlTable:
    for override in overrides:
        values = _merge_tables(values, _override(values, override))
    return values


def _override(values: Mapping[str, Any], override: str) -> TomlTable:
    """Return the nested values of one `section.field=value`."""
    key, separator, text = override.partition("=")
    if not separator:
        raise invalid("--set", override, "section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    nested, below = {last: value}, values
    for section in sections:
        below = below.get(section, {}) if isinstance(below, Mapping) else below
        if not isinstance(below, Mapping):
            raise invalid("--set", key, "a field of a recipe")
    for section in reversed(sections):
        nested = {section: nested}
    return nested
