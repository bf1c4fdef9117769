"""VBench's aesthetic quality: LAION's linear head on OpenAI's CLIP ViT-L/14.

The head (`sa_0_4_vit_l_14_linear.pth`) reads image features of length 1 and predicts human ratings of 1 to 10; VBench
divides by 10. As VBench does it: the image is a tensor before its shortest side is resized to 224 (bicubic, no
antialiasing, overshoot kept), the centre is cut out, then normalised. A video's score is the mean over its frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.evaluation.scorers.pixels import compute_center_start, iter_batches, resize, to_tensor
from pipeline.evaluation.scorers.scorer import Metric, Options
from pipeline.hashing import hash_file
from pipeline.models.clip.features import ClipFeatures, check_clip, load_clip_features
from pipeline.models.clip.normalization import normalize
from pipeline.models.weight_files import find_weights_file, read_tensors, require_layout

FIELD, HEAD_FIELD = "evaluation.metrics.weights", "evaluation.metrics.head"
ARCHITECTURE = "ViT-L-14-quickgelu"
HEAD = "sa_0_4_vit_l_14_linear.pth"
SCALE = 0.1


@dataclass(frozen=True)
class Aesthetic:
    """Scores `aesthetic`, about 0.4 to 0.7."""

    features: ClipFeatures
    head: dict[str, Tensor]
    options: Options
    batch_size: int

    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Score images by LAION's aesthetic predictor."""
        ready = partial(prepare, side=self.features.image_size)
        image_features = torch.cat(
            [self.features.encode_images(b) for b in iter_batches(images, self.batch_size, ready)]
        )
        marks = image_features @ self.head["weight"][0] + self.head["bias"]
        return {"aesthetic": (SCALE * marks.double()).tolist()}


def check(metric: Metric) -> None:
    """Check the weights of the CLIP and of the head."""
    config = check_clip(metric.weights, metric.architecture or ARCHITECTURE, FIELD)
    _read_head(metric, config.projection_dim)


def load(metric: Metric, device: torch.device | str = "cpu") -> Aesthetic:
    """Load the CLIP and the head."""
    features, record = load_clip_features(metric.weights, metric.architecture or ARCHITECTURE, FIELD, device)
    file, head = _read_head(metric, features.model.config.projection_dim)
    record |= {"head": metric.head, "head_sha256": hash_file(file), "scale": SCALE}
    head = {name: value.to(device, torch.float32) for name, value in head.items()}
    return Aesthetic(features, head, record, metric.batch_size)


def _read_head(metric: Metric, width: int) -> tuple[Path, dict[str, Tensor]]:
    file = find_weights_file(metric.head, HEAD_FIELD, (HEAD,))
    head = read_tensors(file, HEAD_FIELD)
    require_layout(head, {"weight": torch.empty(1, width), "bias": torch.empty(1)}, file, HEAD_FIELD)
    return file, head


def prepare(image: Image, *, side: int) -> Tensor:
    """Return a normalised tensor [3, side, side]."""
    pixels = to_tensor(image)
    height, width = pixels.shape[1:]
    short = min(height, width)
    if short != side:
        height, width = (side if length == short else int(side * length / short) for length in (height, width))
        pixels = resize(pixels, height, width, "bicubic", antialias=False)
    top, left = compute_center_start(height, side), compute_center_start(width, side)
    return normalize(pixels[:, top : top + side, left : left + side])
