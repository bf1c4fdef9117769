"""The scorers of the Shapes toy dataset: the attributes that an image shows, and a small CLIP's cosines."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.evaluation.contact_sheet import from_pixels
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.scorers.scorer import Options
from pipeline.hashing import hash_bytes, hash_folder
from pipeline.models.clip.loss_model import Clip
from pipeline.recipe import BUNDLED
from pipeline.shapes import WEIGHTS


class Attributes:
    """`shown_shape`, `shown_colour`, `shown_background`, `shown_quality`: the most likely value of each."""

    def __init__(self) -> None:
        content = (WEIGHTS / "judge.safetensors").read_bytes()
        self.options: Options = {"judge": "attributes", "weights": hash_bytes(content)}
        self._judge = AttributeJudge.load()

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[str]]:
        """Return the attributes that images show."""
        rows = self._judge.classify_attributes(stack_images(images))
        names = ("shape", "colour", "background", "quality")
        return {f"shown_{name}": [shown[name] for shown in rows] for name in names}


class ShapesClip:
    """`clip_positive` and `clip_negative`: the cosine of the image with either text, -1..1, by the bundled CLIP."""

    def __init__(self) -> None:
        self.options: Options = {"clip": BUNDLED, "weights": hash_folder(WEIGHTS / "clip")}
        self._clip = Clip.load(BUNDLED)

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Return the cosines of images with both texts."""
        pixels = stack_images(images)
        return {
            "clip_positive": self._clip.score_pairs(pixels, list(prompts)).tolist(),
            "clip_negative": self._clip.score_pairs(pixels, [text or "" for text in negatives]).tolist(),
        }


def stack_images(images: Sequence[Image.Image]) -> Tensor:
    """Return [B, 3, H, W] in -1..1 from images of one size."""
    return from_pixels(np.stack([np.asarray(image.convert("RGB")) for image in images]))
