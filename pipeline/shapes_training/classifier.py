"""Training of the attribute classifier."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.shapes.classifier import AttributeClassifier
from pipeline.shapes.samples import draw_samples
from pipeline.shapes_training.training_loop import fit

STEPS, BATCH, LEARNING_RATE = 800, 96, 2e-3


def train(work: Path, vae: AutoencoderKL, *, steps: int = STEPS) -> AttributeClassifier:
    """Train on renders; the autoencoder reconstructs a quarter of each batch, since generated images are decoded."""
    torch.manual_seed(0)
    judge = AttributeClassifier()
    fit(
        judge,
        lambda step: _compute_loss(judge, vae, step),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "judge.pt",
    )
    return judge


def _compute_loss(judge: AttributeClassifier, vae: AutoencoderKL, step: int) -> Tensor:
    batch = draw_samples(BATCH, (4, step))
    images, labels = batch.images.clone(), batch.get_labels()
    images[: BATCH // 4] = reconstruct(vae, images[: BATCH // 4])
    logits = judge(images)
    return torch.stack([F.cross_entropy(logits[name], labels[name]) for name in labels]).mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the images encoded and decoded by the autoencoder, clamped to -1..1."""
    decoded: Tensor = vae.decode(vae.encode(images).latent_dist.mean).sample
    return decoded.clamp(-1, 1)
