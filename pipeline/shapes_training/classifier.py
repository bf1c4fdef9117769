"""Training of the attribute classifier.

It judges generated images, so it also learns what the autoencoder makes of a render, and a class of its own for images
that show no scene clearly: blends of two scenes, noisy latents and the teacher's images after one step. Such an image
is unclear if it fits two flat colours worse than nearly all clean scenes do; others of them teach nothing.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from nasa.parameterization import add_noise, alpha_sigma, to_x0
from pipeline.shapes.classifier import CLASSES, UNCLEAR, AttributeClassifier
from pipeline.shapes.denoiser import build_scheduler
from pipeline.shapes_training.denoiser import encode_pool
from pipeline.shapes_training.pool import Pool
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE = 3000, 96, 2e-3
DECODED = 12_288  # images of each kind: reconstructions and unclear images
DECODED_AT_ONCE = 256
LLOYD_ITERATIONS = 4
BLEND = (0.25, 0.75)  # share of the second scene
NOISE = (0.35, 1.2)  # deviation, where latents have a deviation of one
FAINT_NOISE = 0.12  # a reconstruction stays clear up to this
ONE_STEP_TIMESTEPS = (800, 1000)
GUIDANCE_SCALES = (1.0, 5.0)
CLEAN_QUANTILE, MARGIN = 0.99, 1.25  # unclear is a two-colour error of MARGIN times this quantile of clean images
UNCLEAR_INDEX = CLASSES["quality"].index(UNCLEAR)


def train(
    work: Path,
    pool: Pool,
    vae: AutoencoderKL,
    denoiser: nn.ModuleDict,
    *,
    steps: int = STEPS,
    max_seconds: float = math.inf,
) -> AttributeClassifier:
    """Train on thirds of renders, of their reconstructions, and of unclear images."""
    torch.manual_seed(0)
    device = pool.images.device
    judge = AttributeClassifier().to(device)
    rebuilt, unclear = decode_examples(pool, vae, denoiser)

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator(device).manual_seed(step)
        rows = pool.draw_rows(BATCH, generator)
        third = BATCH // 3
        rows[third : 2 * third] %= len(rebuilt)
        rows[2 * third :] %= len(unclear)
        parts = [pool.get_images(rows[:third]), rebuilt[rows[third : 2 * third]], unclear[rows[2 * third :]]]
        labels = {name: values[rows].clone() for name, values in pool.labels.items()}
        for name, values in labels.items():
            values[2 * third :] = UNCLEAR_INDEX if name == "quality" else -1
        return {"images": torch.cat(parts), **labels}

    fit(
        judge,
        draw_batch,
        lambda batch: _compute_loss(judge, batch),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "judge.pt",
        max_seconds=max_seconds,
    )
    return judge


def _compute_loss(judge: AttributeClassifier, batch: Batch) -> Tensor:
    logits = judge(batch["images"])
    return torch.stack([F.cross_entropy(logits[name], batch[name], ignore_index=-1) for name in CLASSES]).mean()


@torch.no_grad()
def decode_examples(pool: Pool, vae: AutoencoderKL, denoiser: nn.ModuleDict) -> tuple[Tensor, Tensor]:
    """Return reconstructions of the pool's first scenes, and unclear images: float32 [N, 3, 64, 64] in -1..1."""
    device = pool.images.device
    generator = torch.Generator(device).manual_seed(0)
    count = min(DECODED, len(pool))
    latents = encode_pool(vae, pool)

    def uniform(low: float, high: float, size: int) -> Tensor:
        return low + (high - low) * torch.rand((size, 1, 1, 1), generator=generator, device=device)

    def noise(size: int) -> Tensor:
        return torch.randn((size, *latents.shape[1:]), generator=generator, device=device)

    faint = uniform(0, FAINT_NOISE, count) * noise(count)
    third = count // 3
    first, second = latents[pool.draw_rows(third, generator)], latents[pool.draw_rows(third, generator)]
    blends = torch.lerp(first, second, uniform(*BLEND, third).expand_as(first))
    noisy = latents[pool.draw_rows(third, generator)] + uniform(*NOISE, third) * noise(third)
    rest = count - 2 * third
    rows = pool.draw_rows(rest, generator)
    one_step = _predict_x0(pool, latents, rows, denoiser, noise(rest), uniform(*GUIDANCE_SCALES, rest), generator)
    rebuilt, unclear = decode(vae, latents[:count] + faint), decode(vae, torch.cat([blends, noisy, one_step]))
    clean = rebuilt[pool.labels["quality"][:count] == CLASSES["quality"].index("clean")]
    limit = MARGIN * compute_two_colour_error(clean).quantile(CLEAN_QUANTILE)
    unclear = unclear[compute_two_colour_error(unclear) > limit]
    return rebuilt, unclear[torch.randperm(len(unclear), generator=generator, device=device)]


def compute_two_colour_error(images: Tensor) -> Tensor:
    """Return how badly images [B, 3, H, W] fit two flat colours: the root mean square distance to the nearer, [B]."""
    pixels = images.flatten(2).transpose(1, 2)  # [B, P, 3]
    first = pixels[:, 0]
    second = pixels[torch.arange(len(pixels)), (pixels - first[:, None]).square().sum(-1).argmax(1)]
    for _ in range(LLOYD_ITERATIONS):
        distances = torch.stack([(pixels - colour[:, None]).square().sum(-1) for colour in (first, second)])
        is_second = (distances[1] < distances[0]).float()[..., None]
        first, second = ((weight * pixels).sum(1) / weight.sum(1).clamp(min=1) for weight in (1 - is_second, is_second))
    return torch.sqrt(
        torch.stack([(pixels - colour[:, None]).square().sum(-1) for colour in (first, second)]).amin(0).mean(1)
    )


def _predict_x0(
    pool: Pool,
    latents: Tensor,
    rows: Tensor,
    denoiser: nn.ModuleDict,
    eps: Tensor,
    guidance_scale: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Return the teacher's guided prediction of x0 in one step from a late timestep, which is smeared."""
    device, alphas_cumprod = latents.device, build_scheduler().alphas_cumprod.to(latents.device)
    timestep = torch.randint(*ONE_STEP_TIMESTEPS, rows.shape, generator=generator, device=device)
    captions = pool.draw_captions(rows, generator)
    chunks = []
    for part in torch.arange(len(rows), device=device).split(DECODED_AT_ONCE):
        t = timestep[part]
        alpha, sigma = alpha_sigma(alphas_cumprod, t)
        x_t = add_noise(latents[rows[part]], eps[part], alpha, sigma)
        null = pool.null_caption.expand(len(part), -1)
        embeds = denoiser["text_encoder"](torch.cat([null, captions[part]]))[0]
        pred_uncond, pred_cond = denoiser["unet"](torch.cat([x_t, x_t]), t.repeat(2), embeds).sample.chunk(2)
        output = torch.lerp(pred_uncond, pred_cond, guidance_scale[part].expand_as(pred_cond))
        chunks.append(to_x0(output, x_t, alpha, sigma, "v_prediction"))
    return torch.cat(chunks)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Return the images of scaled latents, clamped to -1..1."""
    parts = (latents / vae.config.scaling_factor).split(DECODED_AT_ONCE)
    return torch.cat([vae.decode(part).sample for part in parts]).clamp(-1, 1)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return the images encoded and decoded by the autoencoder, clamped to -1..1."""
    decoded: Tensor = vae.decode(vae.encode(images).latent_dist.mean).sample
    return decoded.clamp(-1, 1)
