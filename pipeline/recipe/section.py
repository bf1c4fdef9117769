"""The base of a recipe's sections, the types of their fields, and validation errors as one line."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from pipeline.errors import UserError, invalid


class Section(BaseModel):
    """A frozen section with typed fields; unknown fields and implicit conversions are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Validate plain values, such as those of a TOML file.

        Raises:
            UserError: naming the first field that is not accepted, its value and what is expected.
        """
        try:
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            raise _user_error(error.errors()[0], cls) from None

    def values(self) -> dict[str, Any]:
        """Return the plain values, as they are written to TOML or JSON."""
        return self.model_dump(mode="json")


def expecting(check: Any, expected: str) -> AfterValidator:
    """Return a validator that accepts what `check` is true of; `expected` describes it in an error and in the docs."""

    def validate(value: Any) -> Any:
        if not check(value):
            raise PydanticCustomError("expected", "{expected}", {"expected": expected})
        return value

    return AfterValidator(validate)


Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
JpegQuality = Annotated[int, Field(ge=0, le=95)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1)]

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "tuple_type": "a list",
    "missing": "a value",
    "too_short": "at least one entry",
    "string_too_short": "a name",
    "model_type": "a section with fields",
    "dataclass_type": "a section with fields",
}
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def _user_error(error: ErrorDetails, cls: type[BaseModel]) -> UserError:
    field, kind, value = _path(error["loc"]), error["type"], error["input"]
    context = error.get("ctx", {})
    if kind == "value_error":  # of a dataclass or a section, which names its field itself
        return UserError(".".join(filter(None, [field, str(context["error"])])))
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return invalid(field, value, f"one of the fields {', '.join(_fields(cls, error['loc'][:-1]))}")
    if kind in ("too_long", "missing") and isinstance(error["loc"][-1], int):
        return invalid(_path(error["loc"][:-1]), value, "a list of another length")
    return invalid(field, value, _expected(kind, context) or error["msg"].lower())


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    """Return what pydantic's error of this type expects, or an empty string."""
    if "expected" in context:
        return str(context["expected"])
    if "pattern" in context:
        return f"a name that matches {context['pattern']}"
    bounds = [f"a number {words.format(context[bound])}" for bound, words in _BOUNDS.items() if bound in context]
    return _TYPES.get(kind, "") or next(iter(bounds), "")


def _path(loc: tuple[int | str, ...]) -> str:
    """Return `evaluation.metrics[0].kind` for ("evaluation", "metrics", 0, "kind")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _fields(cls: Any, loc: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the section at `loc` below the model `cls`."""
    schema = cls.model_json_schema()
    node = schema
    for part in loc:
        node = node["items"] if isinstance(part, int) else node["properties"][part]
        while "$ref" in node or "allOf" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node["allOf"][0]
    return list(node["properties"])
