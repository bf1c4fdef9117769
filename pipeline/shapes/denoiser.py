"""The teacher's denoiser and text encoder: a small Stable Diffusion UNet that predicts v."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from datasets_prep.shapes import sample_caption
from nasa.parameterization import add_noise, alpha_sigma, target
from nasa.prompt_embeds import tokenize
from pipeline.shapes.clip import WIDTH
from pipeline.shapes.fit import fit
from pipeline.shapes.samples import Samples, draw

STEPS, BATCH, LEARNING_RATE = 3000, 64, 4e-3
NULL_TEXT_SHARE = 0.1
POOL, POOL_CHUNK = 16_384, 64


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule, with v-prediction as in Stable Diffusion 2.1."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def train(
    work: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, steps: int = STEPS
) -> nn.ModuleDict:
    """Train the UNet, and the text encoder with it, on the latents of a fixed pool of images."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"unet": build_unet(), "text_encoder": text_encoder})
    latents, pool = encode_pool(vae, work / "latents.pt")
    alphas_cumprod = build_scheduler().alphas_cumprod

    def loss(step: int) -> Tensor:
        return _loss(model, tokenizer, latents, pool, alphas_cumprod, step)

    fit(model, loss, steps=steps, learning_rate=LEARNING_RATE, state_file=work / "denoiser.pt")
    return model


def _loss(
    model: nn.ModuleDict, tokenizer: CLIPTokenizer, latents: Tensor, pool: Samples, alphas_cumprod: Tensor, step: int
) -> Tensor:
    rng = np.random.default_rng((3, 1, step))
    rows = rng.integers(0, len(latents), size=BATCH)
    captions = captions_of(pool, rows, rng)
    generator = torch.Generator().manual_seed(step)
    x0 = latents[torch.from_numpy(rows)]
    eps = torch.randn(x0.shape, generator=generator)
    timestep = torch.randint(0, len(alphas_cumprod), (BATCH,), generator=generator)
    alpha, sigma = alpha_sigma(alphas_cumprod, timestep)
    embeds = model["text_encoder"](tokenize(tokenizer, captions))[0]
    output = model["unet"](add_noise(x0, eps, alpha, sigma), timestep, embeds).sample
    return F.mse_loss(output, target(x0, eps, alpha, sigma, "v_prediction"))


def captions_of(pool: Samples, rows: np.ndarray, rng: np.random.Generator) -> list[str]:
    """A caption of each row's scene, or the null text in `NULL_TEXT_SHARE` of them."""
    captions = [sample_caption(pool.scenes[row], rng) for row in rows]
    return ["" if rng.random() < NULL_TEXT_SHARE else caption for caption in captions]


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, cache: Path) -> tuple[Tensor, Samples]:
    """Scaled latents float32 [N, 4, 8, 8] of the pool's images, and their scenes."""
    chunks = [draw(POOL_CHUNK, (3, 0, i)) for i in range(POOL // POOL_CHUNK)]
    pool = Samples(torch.empty(0), [], [scene for chunk in chunks for scene in chunk.scenes])
    if cache.exists():
        return torch.load(cache, weights_only=True), pool
    encoded = [vae.encode(chunk.images).latent_dist.mean * vae.config.scaling_factor for chunk in chunks]
    latents = torch.cat(encoded)
    torch.save(latents, cache)
    return latents, pool
