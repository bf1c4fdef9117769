"""What scores images by a metric of a recipe."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL.Image import Image

from pipeline.recipe import Metric

__all__ = ["Metric", "Scorer"]


class Scorer(Protocol):
    """Scores images: one list for each column, in the images' order."""

    options: dict[str, Any]  # recorded beside the numbers

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[Any]]: ...
