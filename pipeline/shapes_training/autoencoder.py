"""Training of the autoencoder."""

import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE, build_autoencoder
from pipeline.shapes_training.pool import Pool
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE = 8000, 64, 4e-3
KL_WEIGHT = 2e-3
EDGE_WEIGHT = 1.0  # of the error of differences between neighbouring pixels, which keeps edges and grain
SCALED_IMAGES = 1024  # that `scaling_factor` is measured on


def train(work: Path, pool: Pool, *, steps: int = STEPS, max_seconds: float = math.inf) -> AutoencoderKL:
    """Train on reconstruction with a light KL; scaling_factor brings the latents to unit variance."""
    torch.manual_seed(0)
    vae = build_autoencoder().to(pool.images.device)

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator(pool.images.device).manual_seed(step)
        shape = (BATCH, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        noise = torch.randn(shape, generator=generator, device=pool.images.device)
        return {"images": pool.get_images(pool.draw_rows(BATCH, generator)), "noise": noise}

    fit(
        vae,
        draw_batch,
        lambda batch: _compute_loss(vae, batch),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "vae.pt",
        max_seconds=max_seconds,
    )
    with torch.no_grad():
        generator = torch.Generator(pool.images.device).manual_seed(0)
        latents = vae.encode(pool.get_images(pool.draw_rows(SCALED_IMAGES, generator))).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae


def _compute_loss(vae: AutoencoderKL, batch: Batch) -> Tensor:
    posterior = vae.encode(batch["images"]).latent_dist
    error = vae.decode(posterior.mean + posterior.std * batch["noise"]).sample - batch["images"]
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss: Tensor = error.abs().mean() + error.square().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * kl
    return loss
