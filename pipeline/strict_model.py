"""The base of models of TOML and JSON files: frozen, strictly validated, with errors of one line."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import UserError, invalid

STRICT = ConfigDict(strict=True, extra="forbid")
"""No implicit conversions, and no unknown fields."""

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "dict_type": "an object",
    "missing": "a value",
    "too_short": "at least one entry",
    "string_too_short": "a string that is not empty",
    "model_type": "a section with fields",
    "dataclass_type": "a section with fields",
}
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


class StrictModel(BaseModel):
    """A frozen record with typed fields. Implicit conversions are errors; unknown fields of later versions are not."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", ser_json_inf_nan="constants")

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """Validate plain values, such as those of a TOML or JSON file, which `where` names.

        Raises:
            UserError: naming the first field that is not accepted, its value and what is expected.
        """
        try:
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            raise build_user_error(error.errors()[0], cls, where) from None

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the plain values, as they are written to TOML or JSON, without those that are None."""
        return self.model_dump(mode="json", exclude_none=True)


def build_user_error(error: ErrorDetails, cls: type[BaseModel], where: str = "") -> UserError:
    """Return pydantic's error of a model `cls` as one line with field, value and what is expected."""
    path, kind, value = _format_path(error["loc"]), error["type"], error["input"]
    field = ": ".join(filter(None, [where, path]))
    context = error.get("ctx", {})
    if kind == "value_error":  # errors of a dataclass or a section name the field themselves
        return UserError(".".join(filter(None, [field, str(context["error"])])))
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return invalid(field, value, f"one of the fields {', '.join(_list_fields(cls, error['loc'][:-1]))}")
    if kind == "missing" and not isinstance(error["loc"][-1], int):
        return invalid(field, None, "a value")
    if kind in ("too_long", "missing"):
        return invalid(_format_path(error["loc"][:-1]), value, "a list of another length")
    return invalid(field, value, _describe_expected(kind, context) or error["msg"].lower())


def _describe_expected(kind: str, context: Mapping[str, Any]) -> str:
    """Return what pydantic's error of this type expects, or an empty string."""
    if "expected" in context:
        return str(context["expected"])
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters"
    if "pattern" in context:
        return f"a name that matches {context['pattern']}"
    bounds = [f"a number {words.format(context[bound])}" for bound, words in _BOUNDS.items() if bound in context]
    return _TYPES.get(kind, "") or next(iter(bounds), "")


def _format_path(loc: tuple[int | str, ...]) -> str:
    """Return `evaluation.metrics[0].kind` for ("evaluation", "metrics", 0, "kind"), in one line."""
    shown = (part if isinstance(part, int) or part.isprintable() else repr(part) for part in loc)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in shown).lstrip(".")


def _list_fields(cls: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the section at `loc` below the model `cls`."""
    schema = cls.model_json_schema()
    node = schema
    for part in loc:
        node = node["items"] if isinstance(part, int) else node["properties"][part]
        while "$ref" in node or "allOf" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node["allOf"][0]
    return list(node["properties"])
