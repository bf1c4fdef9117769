"""What a metric is in a recipe, and what scores images by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL.Image import Image

from pipeline.config import POSITIVE, checked

QUALITY = (lambda value: 0 <= value <= 95, "0 for none, or 1 to 95")


class Scorer(Protocol):
    """Scores images: one list for each column, in the images' order."""

    options: dict[str, Any]  # recorded beside the numbers

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]: ...


@dataclass(frozen=True)
class Metric:
    """One metric of a recipe. A field that its kind does not read keeps its default."""

    kind: Literal["hpsv2", "clip", "aesthetic", "imaging"]
    weights: str = ""  # a file, a folder, or an id on the hub
    architecture: str = ""  # of weights in open_clip's layout; none is the kind's own
    version: Literal["v2.0", "v2.1"] = "v2.1"  # of hpsv2
    antialias: bool = True  # of hpsv2's resize: torchvision's default since 0.17, off before
    jpeg_quality: int = checked(
        75, QUALITY
    )  # of hpsv2, whose benchmark reads JPEG files; 0 scores the images as they are
    prefix: str = "A photo depicts "  # of clip, before each prompt
    head: str = ""  # of aesthetic: the linear head's weights
    batch_size: int = checked(16, POSITIVE)
