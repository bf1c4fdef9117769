"""CLIP+ and CLIP-: the cosine of an image with its prompt, which should be high, and with its negative prompt, low.

Images are prepared as open_clip does it: the shortest side resized to the model's with Pillow, the centre cut out,
then normalised as the file beside the weights says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import PIL.Image
import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.evaluation.scorers.pixels import compute_center_start, iter_batches, to_tensor
from pipeline.evaluation.scorers.scorer import Metric, Options
from pipeline.models.clip.features import ClipFeatures, check_clip, load_clip_features
from pipeline.models.clip.normalization import Normalization

FIELD = "evaluation.metrics.weights"
ARCHITECTURE = "ViT-g-14"  # model and release: laion2b_s12b_b42k
OPENAI = Normalization()


@dataclass(frozen=True)
class ClipScore:
    """`clip_positive` and `clip_negative`, in -1..1; NaN if an image has no negative prompt."""

    features: ClipFeatures
    options: Options
    prefix: str
    batch_size: int

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Score images by the cosine with their prompts."""
        image_features = self.encode_images(images)
        return {
            "clip_positive": self._compute_cosines(image_features, prompts),
            "clip_negative": self._compute_cosines(image_features, negatives),
        }

    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Return the normalised features [B, D] of images."""
        ready = partial(prepare, side=self.features.image_size, normalization=self.features.normalization)
        return torch.cat([self.features.encode_images(b) for b in iter_batches(images, self.batch_size, ready)])

    def _compute_cosines(self, image_features_BD: Tensor, texts: Sequence[str | None]) -> list[float]:
        text_features_BD = self.features.encode_texts([self.prefix + (text or "") for text in texts])
        cosines = (image_features_BD * text_features_BD).sum(-1).tolist()
        return [math.nan if text is None else cosine for cosine, text in zip(cosines, texts, strict=True)]


def check(metric: Metric) -> None:
    """Check the CLIP's weights."""
    check_clip(metric.weights, metric.architecture or ARCHITECTURE, FIELD)


def load(metric: Metric, device: torch.device | str = "cpu") -> ClipScore:
    """Load the CLIP."""
    features, record = load_clip_features(metric.weights, metric.architecture or ARCHITECTURE, FIELD, device)
    return ClipScore(features, record | {"prefix": metric.prefix}, metric.prefix, metric.batch_size)


def prepare(image: Image, *, side: int, normalization: Normalization = OPENAI) -> Tensor:
    """Return a normalised tensor [3, side, side]; RGB conversion is last, as in open_clip: Pillow weighs by alpha."""
    return normalization.from_unit(to_tensor(crop_centre(resize_shortest_side(image, side), side)))


def resize_shortest_side(image: Image, side: int) -> Image:
    """Resize an image to a shortest side of `side` pixels, by Pillow's bicubic filter."""
    short = min(image.size)
    width, height = (side if length == short else int(side * length / short) for length in image.size)
    return image if short == side else image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def crop_centre(image: Image, side: int) -> Image:
    """Crop the centre square."""
    left, top = (compute_center_start(length, side) for length in image.size)
    return image.crop((left, top, left + side, top + side))
