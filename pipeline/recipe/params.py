"""A recipe as flat parameters, under the dotted names of `--set`, which MLflow's tables compare column by column."""

from collections.abc import Mapping

from pydantic import JsonValue

from pipeline.recipe.loading import RECIPES, load
from pipeline.recipe.schema import Recipe
from pipeline.redaction import redact

MAX_LENGTH = 500  # characters of a value
NAMED, MAX_NAME = 3, 100  # changes in a run's name, and its characters


def flatten(values: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Return nested values under dotted names."""
    items: dict[str, JsonValue] = {}
    for key, value in values.items():
        items |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


def list_changes(recipe: Recipe) -> dict[str, str]:
    """Return the fields that differ from the project's recipe of the same name, or from the defaults without one.

    Where notifications go and which files stay is left out, as it changes nothing else.
    """
    params, original = format_params(recipe), format_params(load(recipe.name) if _is_known(recipe) else Recipe())
    changed = {name: value for name, value in params.items() if original.get(name) != value}
    return {
        name: value
        for name, value in changed.items()
        if name != "name" and not name.startswith(("notify.", "retention."))
    }


def _is_known(recipe: Recipe) -> bool:
    return (RECIPES / f"{recipe.name}.toml").is_file()


def format_run_name(recipe: Recipe) -> str:
    """Return the recipe's name with the first of its changes, such as "shapes, steps=50"."""
    listed = list_changes(recipe).items() if _is_known(recipe) else ()
    changes = [f"{name.rpartition('.')[2]}={value}" for name, value in listed]
    more = [f"{len(changes) - NAMED} more"] if len(changes) > NAMED else []
    return ", ".join([recipe.name, *changes[:NAMED], *more])[:MAX_NAME]


def format_note(recipe: Recipe) -> str:
    """Return a run's description: all changes of its recipe."""
    changes = [f"- `{name}` = `{value}`" for name, value in list_changes(recipe).items()]
    original = f"the recipe `{recipe.name}`" if _is_known(recipe) else "the defaults"
    return "\n".join([f"Differs from {original} in:", "", *changes]) if changes else ""


def format_params(recipe: Recipe) -> dict[str, str]:
    """Return every field of a recipe as text, without secrets."""
    return {name: redact(str(value))[:MAX_LENGTH] for name, value in flatten(recipe.to_dict()).items()}
