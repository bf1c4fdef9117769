"""The protocol of a scorer."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL.Image import Image

from pipeline.recipe import Metric

__all__ = ["Metric", "Scorer"]


class Scorer(Protocol):
    """Scores images by a metric."""

    @property
    def options(self) -> dict[str, Any]:
        """The options that the scores depend on, recorded beside them."""

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[Any]]:
        """Return one list of values per column, in the images' order."""
