"""Scorers of images: each metric is what its name says, to its authors' definition."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from pipeline.recipe import Metric


class Scorer(Protocol):
    options: dict[str, Any]

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[Any]]: ...


def check(metric: Metric) -> None: ...


def load(metric: Metric, device: str = "cpu") -> Scorer:
    raise NotImplementedError
