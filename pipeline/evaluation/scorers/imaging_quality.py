"""VBench's imaging quality: MUSIQ trained on SPAQ, its score divided by 100.

As VBench does it: an image whose longest side is over 512 is resized to it (bilinear, no antialiasing). A video's score
is the mean over its frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.errors import invalid
from pipeline.evaluation.scorers.pixels import resize, to_tensor
from pipeline.evaluation.scorers.scorer import Metric, Options
from pipeline.hashing import hash_file
from pipeline.models.musiq import Musiq, infer_sizes
from pipeline.models.weight_files import find_weights_file, read_tensors, require_layout

FIELD = "evaluation.metrics.weights"
FILE = "musiq_spaq_ckpt-358bb6af.pth"
LONGEST = 512.0
SCALE = 0.01


@dataclass(frozen=True)
class Imaging:
    """Scores `imaging`, about 0.4 to 0.8. Images are scored one by one, since their numbers of patches differ."""

    model: Musiq
    options: Options

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[float]]:
        """Score images by MUSIQ."""
        device = self.model.embedding.weight.device
        return {"imaging": [SCALE * float(self.model(prepare(image).to(device))) for image in images]}


def check(metric: Metric) -> None:
    """Check MUSIQ's weights."""
    _read_weights(metric)


def load(metric: Metric, device: torch.device | str = "cpu") -> Imaging:
    """Load MUSIQ's weights."""
    file, sizes, weights = _read_weights(metric)
    model = Musiq(**sizes)
    model.load_state_dict(weights)
    record: Options = {"weights": metric.weights, "sha256": hash_file(file), "scale": SCALE}
    return Imaging(model.float().requires_grad_(False).eval().to(device), record)


def _read_weights(metric: Metric) -> tuple[Path, dict[str, int], dict[str, Tensor]]:
    file = find_weights_file(metric.weights, FIELD, (FILE,))
    tensors = read_tensors(file, FIELD)
    try:
        sizes = infer_sizes(tensors)
    except KeyError as error:
        raise invalid(FIELD, str(file), f"{FILE}, with a tensor {error.args[0]!r}") from None
    with torch.device("meta"):
        wanted = Musiq(**sizes).state_dict()
    require_layout(tensors, wanted, file, FIELD)
    return file, sizes, tensors


def prepare(image: Image) -> Tensor:
    """Return [3, H, W] in 0..1."""
    pixels = to_tensor(image)
    height, width = pixels.shape[1:]
    scale = LONGEST / max(height, width)
    if scale >= 1:
        return pixels
    return resize(pixels, int(scale * height), int(scale * width), "bilinear", antialias=False)
