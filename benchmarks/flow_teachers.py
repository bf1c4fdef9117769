"""Two more teachers of the Shapes toy dataset, both of flow matching: cross-attention (SANA) and joint attention (SD3).

    python -m benchmarks.flow_teachers --work runs/flow --teacher sana --threads 1      # can be resumed

They are the families' own transformers at small width, with the bundled teacher's autoencoder and text encoder, each a
pipeline of diffusers in `--work`. They learn the bundled teacher's velocity on rendered images with noise: it is the
mean of what images alone would teach, x_s = (1 - s) x0 + s eps with the target eps - x0 (arXiv 2210.02747), and without
that target's noise a small network learns in one hour what would otherwise take many.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from nasa.parameterization import add_noise, to_eps, to_x0
from nasa.schedulers import FLOW_STEPS
from nasa.steerable_denoiser import require_distillation
from pipeline import models
from pipeline.models import TextToImage
from pipeline.shapes import WEIGHTS
from pipeline.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from pipeline.shapes.clip import WIDTH
from pipeline.shapes_training.denoiser import NULL_TEXT_SHARE, encode_pool
from pipeline.shapes_training.pool import Pool, build_pool
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE = 100_000, 48, 3e-3
SCENES = 16_384
PROJECTION = {"projection_dim": WIDTH}
SHIFT = 2.0  # half of the levels are above s = 2/3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/flow"), help="folder of the teachers (%(default)s)")
    parser.add_argument("--teacher", choices=sorted(BUILDERS), required=True, help="the teacher's family")
    parser.add_argument("--minutes", type=float, default=60.0, help="minutes of training (%(default)g)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps, if they take less time (%(default)s)")
    parser.add_argument("--scenes", type=int, default=SCENES, help="rendered images (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="train a finished teacher again, from its weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    state_file = options.work / f"{options.teacher}.pt"
    if options.restart and not state_file.is_file():
        parser.error(f"--restart: got no {state_file}; expected a teacher that was trained before.")
    if options.restart:
        restart(state_file)
    make_teacher(
        options.work, options.teacher, steps=options.steps, scenes=options.scenes, seconds=60 * options.minutes
    )


def build_sana(vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: Any) -> SanaPipeline:
    """Return SANA with 2.3 million untrained parameters, and CLIP in Gemma's place."""
    transformer = SanaTransformer2DModel(
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=8,
        num_attention_heads=4,
        attention_head_dim=32,
        num_cross_attention_heads=2,
        cross_attention_head_dim=64,
        cross_attention_dim=128,
        caption_channels=WIDTH,
        sample_size=LATENT_SIZE,
        qk_norm="rms_norm_across_heads",
    )
    # SanaPipeline reads its factor, 4, from the config of a deep-compression autoencoder.
    vae.register_to_config(encoder_block_out_channels=vae.config.block_out_channels)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return SanaPipeline(tokenizer, text_encoder, vae, transformer, scheduler)


def build_sd3(vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: Any) -> StableDiffusion3Pipeline:
    """Return Stable Diffusion 3 with 3.5 million untrained parameters, the same CLIP twice and no T5."""
    clip = CLIPTextModelWithProjection(type(text_encoder.config)(**{**text_encoder.config.to_dict(), **PROJECTION}))
    clip.text_model.load_state_dict(text_encoder.state_dict())
    clip.text_projection.weight.data.copy_(torch.eye(WIDTH))
    transformer = build_sd3_transformer(layers=6, heads=4, head_dim=32, text_width=2 * WIDTH)
    encoders = {"text_encoder": clip, "tokenizer": tokenizer, "text_encoder_2": clip, "tokenizer_2": tokenizer}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    without_t5 = {"text_encoder_3": None, "tokenizer_3": tokenizer}  # zeros, as many as the tokenizer's limit
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, vae=vae, **encoders, **without_t5)


def build_sd3_transformer(*, layers: int, heads: int, head_dim: int, text_width: int) -> SD3Transformer2DModel:
    """Return an untrained transformer of Stable Diffusion 3 for the toy dataset's latents."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        caption_projection_dim=heads * head_dim,
        pooled_projection_dim=text_width,
        pos_embed_max_size=LATENT_SIZE // 2,
        qk_norm="rms_norm",
    )


BUILDERS: dict[str, Callable[..., Any]] = {"sana": build_sana, "sd3": build_sd3}


def make_teacher(
    work: Path, name: str, *, steps: int, scenes: int, seconds: float = math.inf, compiles: bool = True
) -> Path:
    """Train a teacher and write its pipeline to `work/name`; return that folder."""
    bundled, folder = models.load(WEIGHTS / "teacher"), work / name
    torch.manual_seed(0)
    BUILDERS[name](bundled.vae, bundled.pipe.text_encoder, bundled.pipe.tokenizer).save_pretrained(folder)
    model = models.load(folder)
    pool = build_pool(bundled.pipe.tokenizer, work / f"pool-{scenes}.pt", torch.device("cpu"), scenes)
    denoiser = model.denoiser.requires_grad_(True).train()
    called = torch.compile(denoiser) if compiles else denoiser
    fit(
        denoiser,
        build_batches(bundled, pool),
        lambda batch: compute_loss(called, model, bundled, batch),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / f"{name}.pt",
        max_seconds=seconds,
        save_every=100,
    )
    model.pipe.save_pretrained(folder)
    return folder


def restart(state_file: Path) -> None:
    """Set a state of training back to its first step, with the weights that it has."""
    state = torch.load(state_file, weights_only=True)
    partial = state_file.with_suffix(".partial")
    torch.save({**state, "step": 0}, partial)
    partial.replace(state_file)


def build_batches(bundled: TextToImage, pool: Pool) -> Callable[[int], Batch]:
    """Return a function of the step that draws images, their captions or the null text, noise and levels."""
    latents = encode_pool(bundled.vae, pool)

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        rows = pool.draw_rows(BATCH, generator)
        return {
            "captions": pool.draw_captions(rows, generator, NULL_TEXT_SHARE),
            "x0": latents[rows],
            "eps": torch.randn(BATCH, *latents.shape[1:], generator=generator),
            "level": torch.randint(FLOW_STEPS, (BATCH,), generator=generator),
        }

    return draw_batch


def compute_loss(denoiser: Any, model: TextToImage, bundled: TextToImage, batch: Batch) -> Tensor:
    """Return the mean squared difference from the bundled teacher's velocity, `eps - x0` as it predicts both."""
    x0, eps, flow = batch["x0"], batch["eps"], model.diffusion
    x_s = add_noise(x0, eps, *flow.alpha_sigma(batch["level"], x0))
    texts = bundled.pipe.tokenizer.batch_decode(batch["captions"], skip_special_tokens=True)
    target = predict_velocity(bundled, x0, eps, flow.sigmas[batch["level"]], texts)
    prompt = model.encode(texts)
    with torch.autocast("cpu", torch.bfloat16):
        predict = require_distillation(model.family).predict
        velocity = predict(denoiser, x_s, flow.times[batch["level"]], prompt)
    return F.mse_loss(velocity.float(), target)


@torch.no_grad()
def predict_velocity(bundled: TextToImage, x0: Tensor, eps: Tensor, s_B: Tensor, texts: list[str]) -> Tensor:
    """Return the bundled teacher's velocity at its timestep of the same ratio of noise to image.

    Its last timestep has s = 0.94; it stands for those above, too.
    """
    process = bundled.diffusion
    levels = process.sigmas / (process.alphas + process.sigmas)
    timestep = torch.searchsorted(levels, s_B).clamp(max=process.steps - 1)
    alpha, sigma = process.alpha_sigma(timestep, x0)
    x_t = add_noise(x0, eps, alpha, sigma)
    output = bundled.denoiser(x_t, timestep, bundled.encode(texts).embeds).sample
    kind = process.prediction_type
    return to_eps(output, x_t, alpha, sigma, kind) - to_x0(output, x_t, alpha, sigma, kind)


if __name__ == "__main__":
    main()
