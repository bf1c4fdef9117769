"""HPSv2 (arXiv 2306.09341): the cosine of image and prompt in a CLIP ViT-H-14 fine-tuned on human preferences.

Scores are scaled by 100, as in its benchmark; versions v2.0 and v2.1 differ by about 3 points. As in the benchmark, an
image is encoded as JPEG, converted to a tensor, resized to a longest side of 224, padded with black and then
normalised. Nothing is cropped, and the model's logit_scale is not used.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from pipeline.errors import invalid
from pipeline.evaluation.results import StyleScore, StyleTable
from pipeline.evaluation.scorers.pixels import iter_batches, resize, to_tensor
from pipeline.evaluation.scorers.scorer import Metric, Options
from pipeline.models.clip.features import ClipFeatures, check_clip, load_clip_features
from pipeline.models.clip.normalization import normalize

FIELD = "evaluation.metrics.weights"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
ARCHITECTURE = "ViT-H-14"
SCALE = 100
GROUP = 80  # images per group; the benchmark's deviation is over the groups' means


@dataclass(frozen=True)
class HPSv2:
    """Scores `hpsv2`, about 20 to 35 for images of today's models."""

    features: ClipFeatures
    options: Options
    antialias: bool
    jpeg_quality: int
    batch_size: int

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Score images by HPSv2."""
        ready = partial(
            preprocess_image, side=self.features.image_size, antialias=self.antialias, jpeg_quality=self.jpeg_quality
        )
        image_features = torch.cat(
            [self.features.encode_images(b) for b in iter_batches(images, self.batch_size, ready)]
        )
        cosines = (image_features * self.features.encode_texts(prompts)).sum(-1)
        return {"hpsv2": (SCALE * cosines.double()).tolist()}


def check(metric: Metric) -> None:
    """Check that the weights are HPSv2's, of the recipe's version."""
    named = Path(metric.weights).name
    if named in FILES.values() and named != FILES[metric.version]:
        raise invalid(FIELD, metric.weights, f"{FILES[metric.version]} for version {metric.version}")
    check_clip(metric.weights, metric.architecture or ARCHITECTURE, FIELD, (FILES[metric.version],))


def load(metric: Metric, device: torch.device | str = "cpu") -> HPSv2:
    """Load HPSv2's weights."""
    features, record = load_clip_features(
        metric.weights, metric.architecture or ARCHITECTURE, FIELD, device, (FILES[metric.version],)
    )
    antialias, jpeg_quality = metric.antialias, metric.jpeg_quality
    record |= {"version": metric.version, "scale": SCALE, "antialias": antialias, "jpeg_quality": jpeg_quality}
    return HPSv2(features, record, batch_size=metric.batch_size, antialias=antialias, jpeg_quality=jpeg_quality)


def preprocess_image(image: Image, *, side: int, antialias: bool, jpeg_quality: int) -> Tensor:
    """Return a normalised tensor [3, side, side]."""
    return normalize(resize_letterbox(to_tensor(compress_jpeg(image, jpeg_quality)), side, antialias=antialias))


def compress_jpeg(image: Image, quality: int) -> Image:
    """Return the image as read back from a JPEG file; quality 0 leaves it."""
    if not quality:
        return image
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return PIL.Image.open(file)


def resize_letterbox(pixels: Tensor, side: int, *, antialias: bool) -> Tensor:
    """Return [3, side, side]: the longest side resized to `side`, the other padded with zeros on both sides."""
    height, width = pixels.shape[1:]
    scale = side / float(max(height, width))
    if scale != 1.0:
        height, width = (max(1, round(length * scale)) for length in (height, width))
        pixels = resize(pixels, height, width, "bicubic", antialias=antialias)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(pixels, (left, side - width - left, top, side - height - top))


def build_style_table(scores: Mapping[str, Sequence[float]]) -> StyleTable:
    """Return the benchmark's table from scores by style: overall mean, means and deviations by style."""
    mean = float(np.mean([score for style in scores.values() for score in style]))
    styles = {style: StyleScore(mean=group_mean(values), std=group_std(values)) for style, values in scores.items()}
    return StyleTable(mean=mean, styles=styles)


def group_means(scores: Sequence[float]) -> list[float]:
    """Return the means of consecutive groups of 80 scores."""
    return [float(np.mean(scores[start : start + GROUP])) for start in range(0, len(scores), GROUP)]


def group_mean(scores: Sequence[float]) -> float:
    """Return the benchmark's mean: that of the means of groups of 80, a short last group with full weight."""
    return float(np.mean(group_means(scores)))


def group_std(scores: Sequence[float]) -> float:
    """Return the population deviation of the means of consecutive groups of 80: the benchmark's `std`."""
    return float(np.std(group_means(scores)))
