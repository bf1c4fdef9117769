"""Training of the autoencoder."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.shapes.autoencoder import build_autoencoder
from pipeline.shapes.samples import draw_samples
from pipeline.shapes_training.training_loop import fit

STEPS, BATCH, LEARNING_RATE = 3000, 12, 4e-3
KL_WEIGHT = 2e-4


def train(work: Path, *, steps: int = STEPS) -> AutoencoderKL:
    """Train on reconstruction (L1 + L2) with a light KL; scaling_factor brings the latents to unit variance."""
    torch.manual_seed(0)
    vae = build_autoencoder()
    fit(
        vae, lambda step: _compute_loss(vae, step), steps=steps, learning_rate=LEARNING_RATE, state_file=work / "vae.pt"
    )
    with torch.no_grad():
        latents = vae.encode(draw_samples(512, (1, 0)).images).latent_dist.sample()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae


def _compute_loss(vae: AutoencoderKL, step: int) -> Tensor:
    images = draw_samples(BATCH, (1, 1, step)).images
    posterior = vae.encode(images).latent_dist
    error = vae.decode(posterior.sample()).sample - images
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss: Tensor = error.abs().mean() + F.mse_loss(error, torch.zeros_like(error)) + KL_WEIGHT * kl
    return loss
