"""FLUX.2 Klein: joint attention, with the text's and image's projections fused in its single-stream blocks."""

import math
from typing import Any

import torch
from torch import Tensor

from nasa.architectures import build_flux2_klein_4b
from nasa.families.family import Distillation, Family, PublishedModel, append_text
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_flow

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call
DEFAULT_SIDE = 64  # latents of 1024 pixels
TEACHER_STEPS = 50  # the default of the pipeline's call, on which the shift depends
QWEN3_4B_PARAMETERS = 4_022_468_096


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts by three layers of Qwen3, padded without a mask: the model attends to the padding."""
    embeds, _ = pipe.encode_prompt(
        prompts,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds)


def build_text_ids(tokens: int) -> Tensor:
    """Return the position (0, 0, 0, token) of each token of a text, [T, 4]."""
    positions = torch.zeros(tokens, 4, dtype=torch.long)
    positions[:, 3] = torch.arange(tokens)
    return positions


def build_image_ids(height: int, width: int) -> Tensor:
    """Return the position (0, row, column, 0) of each latent, [L, 4]."""
    zero = torch.zeros(1, dtype=torch.long)
    positions: Tensor = torch.cartesian_prod(zero, torch.arange(height), torch.arange(width), zero)
    return positions


def extend(kwargs: dict[str, Any], text_BTD: Tensor, _: Tensor | None) -> dict[str, Any]:
    """Append the text and its position ids, which start at 0 again."""
    ids = kwargs["txt_ids"]
    more = build_text_ids(text_BTD.shape[1]).to(ids)
    more = more.expand(*ids.shape[:-2], *more.shape)
    return {**append_text(kwargs, text_BTD), "txt_ids": torch.cat([ids, more], dim=-2)}


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity; latents are [B, C, H, W], a token each."""
    velocity: Tensor = transformer(
        hidden_states=latents.flatten(2).transpose(1, 2),
        timestep=time_B / 1000,
        guidance=None,
        encoder_hidden_states=prompt.embeds,
        txt_ids=build_text_ids(prompt.embeds.shape[1]).to(latents.device),
        img_ids=build_image_ids(*latents.shape[2:]).to(latents.device),
        return_dict=False,
    )[0]
    return velocity.mT.reshape(latents.shape)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents, whose channels are those of 2 x 2 latents of the autoencoder, normalised by its statistics."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents)
    std = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt().to(latents)
    batch, channels, height, width = latents.shape
    patches = (latents * std + mean).reshape(batch, channels // 4, 2, 2, height, width)
    pixels = patches.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)
    images: Tensor = vae.decode(pixels, return_dict=False)[0]
    return images


def compute_shift(_: Any, image_tokens: int) -> float:
    """Return the shift of the pipeline's call (`compute_empirical_mu`) at its default number of steps."""
    if image_tokens > 4300:
        return math.exp(0.00016927 * image_tokens + 0.45666666)
    at_200, at_10 = 0.00016927 * image_tokens + 0.45666666, 8.73809524e-05 * image_tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return math.exp(at_200 + slope * (TEACHER_STEPS - 200))


def build_latents(config: Any, side: int) -> tuple[int, ...]:
    """Return the shape [C, H, W] of an image's latents, by default of 1024 pixels."""
    return int(config.in_channels), side or DEFAULT_SIDE, side or DEFAULT_SIDE


FLUX2 = Family(
    name="flux2",
    denoiser_class="Flux2Transformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    extend=extend,
    distillation=Distillation(
        pipeline_classes=("Flux2KleinPipeline",),
        predict=predict,
        output_layer="proj_out",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (MAX_SEQUENCE_LENGTH, config.joint_attention_dim),
        latent_shape=build_latents,
        decode=decode,
        pixels_per_latent=16,
        latent_patch_size=2,
        count_image_tokens=lambda shape: shape[-2] * shape[-1],
        compute_flow_shift=compute_shift,
        call_options={"guidance_scale": 1.0},
        published={
            "black-forest-labs/FLUX.2-klein-base-4B": PublishedModel(build_flux2_klein_4b, QWEN3_4B_PARAMETERS),
        },
    ),
)
