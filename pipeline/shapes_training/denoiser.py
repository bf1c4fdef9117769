"""Training of the teacher's denoiser, with its text encoder."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from datasets_prep.shapes import sample_caption
from nasa.parameterization import add_noise, alpha_sigma, prediction_target
from nasa.prompt_embeds import tokenize
from pipeline.shapes.denoiser import build_scheduler, build_unet
from pipeline.shapes.samples import Samples, draw_samples
from pipeline.shapes_training.training_loop import fit

STEPS, BATCH, LEARNING_RATE = 3000, 64, 4e-3
NULL_TEXT_SHARE = 0.1
POOL, POOL_CHUNK = 16_384, 64


def train(
    work: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, steps: int = STEPS
) -> nn.ModuleDict:
    """Train the UNet, and the text encoder with it, on the latents of a fixed pool of images."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"unet": build_unet(), "text_encoder": text_encoder})
    latents, pool = encode_pool(vae, work / "latents.pt")
    alphas_cumprod = build_scheduler().alphas_cumprod

    def loss(step: int) -> Tensor:
        return _compute_loss(model, tokenizer, latents, pool, alphas_cumprod, step)

    fit(model, loss, steps=steps, learning_rate=LEARNING_RATE, state_file=work / "denoiser.pt")
    return model


def _compute_loss(
    model: nn.ModuleDict, tokenizer: CLIPTokenizer, latents: Tensor, pool: Samples, alphas_cumprod: Tensor, step: int
) -> Tensor:
    rng = np.random.default_rng((3, 1, step))
    rows = rng.integers(0, len(latents), size=BATCH)
    captions = draw_captions(pool, rows, rng)
    generator = torch.Generator().manual_seed(step)
    x0 = latents[torch.from_numpy(rows)]
    eps = torch.randn(x0.shape, generator=generator)
    timestep = torch.randint(0, len(alphas_cumprod), (BATCH,), generator=generator)
    alpha, sigma = alpha_sigma(alphas_cumprod, timestep)
    embeds = model["text_encoder"](tokenize(tokenizer, captions))[0]
    output = model["unet"](add_noise(x0, eps, alpha, sigma), timestep, embeds).sample
    return F.mse_loss(output, prediction_target(x0, eps, alpha, sigma, "v_prediction"))


def draw_captions(pool: Samples, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Return a caption of each row's scene, or the null text with probability `NULL_TEXT_SHARE`."""
    captions = [sample_caption(pool.scenes[row], rng) for row in rows]
    return ["" if rng.random() < NULL_TEXT_SHARE else caption for caption in captions]


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, cache: Path) -> tuple[Tensor, Samples]:
    """Return scaled latents float32 [N, 4, 8, 8] of the pool's images, cached in a file, and their scenes."""
    chunks = [draw_samples(POOL_CHUNK, (3, 0, i)) for i in range(POOL // POOL_CHUNK)]
    pool = Samples(torch.empty(0), [], [scene for chunk in chunks for scene in chunk.scenes])
    if cache.exists():
        return torch.load(cache, weights_only=True), pool
    encoded = [vae.encode(chunk.images).latent_dist.mean * vae.config.scaling_factor for chunk in chunks]
    latents = torch.cat(encoded)
    torch.save(latents, cache)
    return latents, pool
