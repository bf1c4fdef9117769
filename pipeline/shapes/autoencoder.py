"""The autoencoder: diffusers' AutoencoderKL with factor 8, from 64 x 64 pixels to 8 x 8 x 4 latents."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from pipeline.shapes.fit import fit
from pipeline.shapes.samples import draw

STEPS, BATCH, LEARNING_RATE = 3000, 12, 4e-3
KL_WEIGHT = 2e-4


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
    )


def train(work: Path, *, steps: int = STEPS) -> AutoencoderKL:
    """Reconstruction (L1 + L2) with a light KL; scaling_factor brings the latents to unit variance."""
    torch.manual_seed(0)
    vae = build()
    fit(vae, lambda step: _loss(vae, step), steps=steps, learning_rate=LEARNING_RATE, state_file=work / "vae.pt")
    with torch.no_grad():
        latents = vae.encode(draw(512, (1, 0)).images).latent_dist.sample()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae


def _loss(vae: AutoencoderKL, step: int) -> Tensor:
    images = draw(BATCH, (1, 1, step)).images
    posterior = vae.encode(images).latent_dist
    error = vae.decode(posterior.sample()).sample - images
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return error.abs().mean() + F.mse_loss(error, torch.zeros_like(error)) + KL_WEIGHT * kl
