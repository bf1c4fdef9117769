"""A recipe as flat parameters, under the dotted names of `--set`, which MLflow's tables compare column by column."""

from collections.abc import Mapping

from pydantic import JsonValue

from pipeline.recipe.schema import Recipe
from pipeline.redaction import redact

MAX_LENGTH = 500  # characters of a value


def flatten(values: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Return nested values under dotted names."""
    items: dict[str, JsonValue] = {}
    for key, value in values.items():
        items |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


def format_params(recipe: Recipe) -> dict[str, str]:
    """Return every field of a recipe as text, without secrets."""
    return {name: redact(str(value))[:MAX_LENGTH] for name, value in flatten(recipe.to_dict()).items()}
