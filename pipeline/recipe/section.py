"""The base of a recipe's sections, and the types of their fields."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from pipeline.strict_model import StrictModel


class Section(StrictModel):
    """A frozen section with typed fields; unknown fields and implicit conversions are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def build_validator(check: Callable[[Any], bool], expected: str) -> AfterValidator:
    """Return a validator of `check`; `expected` describes the accepted values in an error and in the docs."""

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
