"""The request that a folder of prompts was prepared for, as its manifest keeps it; a different request is refused."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.errors import UserError
from pipeline.prompts import clean
from pipeline.prompts.inputs import Input
from pipeline.recipe import Recipe, parse
from pipeline.storage import Folder

INDEPENDENT = ("avoid_contradictions",)  # settings of prompts that only training reads


def request_of(recipe: Recipe, files: Sequence[Input], negatives: Sequence[Input]) -> dict[str, Any]:
    """Return what prepared prompts depend on: recipe settings by name, and the files found."""
    return {
        "cleaning": 0 if recipe.prompts.is_bundled else clean.VERSION,
        "settings": _settings(recipe),
        "files": [asdict(each) for each in files],
        "negative_files": [asdict(each) for each in negatives],
    }


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings as JSON values."""
    own = {f"prompts.{name}": value for name, value in recipe.prompts.values().items() if name not in INDEPENDENT}
    own["prompts.sources"] = [dict(source) for source in own["prompts.sources"]]
    teacher = {} if recipe.prompts.is_bundled else {"teacher": recipe.teacher, "revision": recipe.revision}
    return {**own, "seed": recipe.seed, **teacher}


def more_files(folder: Folder, record: Mapping[str, Any], asked: Mapping[str, Any]) -> int:
    """Return the number of files to add to a finished preparation; 0 if it is what is requested.

    Raises:
        UserError: where the folder holds something else.
    """
    held = record.get("request") or _of_an_older_version(record)
    where = (
        f"as in {folder.uri}, which holds {record['prompts']} prompts of {', '.join(record['sources'])}. "
        f"Pass another --run, or remove {folder.uri}/manifest.json to prepare it again."
    )
    for name in {**held["settings"], **asked["settings"]}:
        got, expected = asked["settings"].get(name), held["settings"].get(name)
        if got != expected:
            raise UserError(f"{name}: got {_short(got)}; expected {_short(expected)}, {where}")
    if held["cleaning"] != asked["cleaning"]:
        raise UserError(
            f"prompts: got version {asked['cleaning']} of the cleaning; expected {held['cleaning']}, {where}"
        )
    names = {"files": "prompts.sources", "negative_files": "prompts.negatives"}
    return sum(_added(name, held[kind], asked[kind], where) for kind, name in names.items())


def _added(name: str, held: list[dict[str, Any]], asked: list[dict[str, Any]], where: str) -> int:
    now = {json.dumps(each, sort_keys=True) for each in asked}
    if lost := [each["uri"] for each in held if json.dumps(each, sort_keys=True) not in now]:
        raise UserError(
            f"{name}: got {len(lost)} of {len(held)} files changed or gone, such as {lost[0]!r}; "
            f"expected them unchanged, {where}"
        )
    return len(asked) - len(held)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, Mapping):
        given = {name: item for name, item in value.items() if item not in ("", None)}
        return repr(given["path"]) if set(given) == {"path", "weight"} and given["weight"] == 0 else str(given)
    return repr(value)


def _of_an_older_version(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request of a manifest without one: its recipe, and no files."""
    recipe = parse(record["recipe"])
    return request_of(recipe, [], []) | {"cleaning": 0 if recipe.prompts.is_bundled else 1}
