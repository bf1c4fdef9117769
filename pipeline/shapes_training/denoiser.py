"""Training of the teacher's denoiser, with its text encoder."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel

from nasa.parameterization import add_noise, alpha_sigma, prediction_target
from pipeline.shapes.denoiser import build_scheduler, build_unet
from pipeline.shapes_training.pool import Pool
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE = 12_000, 256, 4e-3
NULL_TEXT_SHARE = 0.1
ENCODED_AT_ONCE = 256


def train(
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    *,
    steps: int = STEPS,
    max_seconds: float = math.inf,
) -> nn.ModuleDict:
    """Train the UNet, and the text encoder with it, on the pool's latents."""
    torch.manual_seed(0)
    device = pool.images.device
    model = nn.ModuleDict({"unet": build_unet(), "text_encoder": text_encoder}).to(device)
    latents = encode_pool(vae, pool)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(device)

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator(device).manual_seed(step)
        rows = pool.draw_rows(BATCH, generator)
        x0 = latents[rows]
        return {
            "captions": pool.draw_captions(rows, generator, NULL_TEXT_SHARE),
            "x0": x0,
            "eps": torch.randn(x0.shape, generator=generator, device=device),
            "timestep": torch.randint(len(alphas_cumprod), (BATCH,), generator=generator, device=device),
        }

    fit(
        model,
        draw_batch,
        lambda batch: _compute_loss(model, alphas_cumprod, batch),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "denoiser.pt",
        max_seconds=max_seconds,
    )
    return model


def _compute_loss(model: nn.ModuleDict, alphas_cumprod: Tensor, batch: Batch) -> Tensor:
    x0, eps = batch["x0"], batch["eps"]
    alpha, sigma = alpha_sigma(alphas_cumprod, batch["timestep"])
    embeds = model["text_encoder"](batch["captions"])[0]
    output = model["unet"](add_noise(x0, eps, alpha, sigma), batch["timestep"], embeds).sample
    return F.mse_loss(output, prediction_target(x0, eps, alpha, sigma, "v_prediction"))


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: Pool) -> Tensor:
    """Return the scaled latents of the pool's images, float32 [N, 4, 16, 16]."""
    parts = torch.arange(len(pool), device=pool.images.device).split(ENCODED_AT_ONCE)
    latents = torch.cat([vae.encode(pool.get_images(rows)).latent_dist.mean for rows in parts])
    scaling_factor: float = vae.config.scaling_factor
    return latents * scaling_factor
