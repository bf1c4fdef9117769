"""The protocol of a scorer."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from PIL.Image import Image
from pydantic import JsonValue

from pipeline.recipe import Metric

__all__ = ["Column", "Metric", "Options", "Scorer"]

Options = dict[str, JsonValue]
"""The options that a scorer's values depend on, such as its version and the hash of its weights."""

Column = Sequence[float | None] | Sequence[str]
"""A metric's values, or the attributes that images show."""


class Scorer(Protocol):
    """Scores images by a metric."""

    @property
    def options(self) -> Options:
        """The options that the scores depend on, recorded beside them."""

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> Mapping[str, Column]:
        """Return one list of values per column, in the images' order."""
