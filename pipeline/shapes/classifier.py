"""The attribute judge: a small convolutional classifier of shape, colour, background, quality, size and position."""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pipeline.shapes.fit import fit
from pipeline.shapes.samples import LABELS, draw

STEPS, BATCH, LEARNING_RATE = 800, 96, 2e-3
_WIDTHS = (16, 32, 64, 96)


class AttributeClassifier(nn.Module):
    """Images [B, 3, 64, 64] in -1..1 to logits [B, classes] for each attribute of `LABELS`."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, *_WIDTHS)
        self.features = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.SiLU())
                for i, o in pairwise(channels)
            ],
            nn.Conv2d(_WIDTHS[-1], _WIDTHS[-1], 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        side = 64 // 2 ** len(_WIDTHS)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(_WIDTHS[-1] * side**2, len(values)) for name, values in LABELS.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def train(work: Path, vae: AutoencoderKL, *, steps: int = STEPS) -> AttributeClassifier:
    """A quarter of each batch passes through the autoencoder first, since that is what will be judged."""
    torch.manual_seed(0)
    judge = AttributeClassifier()
    fit(
        judge,
        lambda step: _loss(judge, vae, step),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "judge.pt",
    )
    return judge


def _loss(judge: AttributeClassifier, vae: AutoencoderKL, step: int) -> Tensor:
    batch = draw(BATCH, (4, step))
    images, labels = batch.images.clone(), batch.labels()
    images[: BATCH // 4] = reconstruct(vae, images[: BATCH // 4])
    logits = judge(images)
    return torch.stack([F.cross_entropy(logits[name], labels[name]) for name in labels]).mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """What is left of the images after the autoencoder, clamped to -1..1."""
    decoded: Tensor = vae.decode(vae.encode(images).latent_dist.mean).sample
    return decoded.clamp(-1, 1)
