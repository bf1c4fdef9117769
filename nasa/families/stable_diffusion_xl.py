"""Stable Diffusion XL and the few-step models made from it: DMD2, LCM, Lightning, Turbo."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nasa.architectures import build_sdxl
from nasa.families.family import PublishedModel
from nasa.families.stable_diffusion import STABLE_DIFFUSION
from nasa.families.stable_diffusion import encode as encode_with_clip
from nasa.prompt_embeds import PromptEmbeds

PIXELS_PER_LATENT = 8
TEXT_ENCODERS_PARAMETERS = 123_060_480 + 694_659_840  # CLIP ViT-L/14's and OpenCLIP ViT-bigG/14's


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts by both encoders, with the pooled embedding of the second one; the null text is zeros."""
    if max_sequence_length is not None:
        return encode_with_clip(pipe, prompts, max_sequence_length)
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompts, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    encoded = PromptEmbeds(embeds, pooled=pooled)
    if not pipe.config.force_zeros_for_empty_prompt:
        return encoded
    given = torch.tensor([bool(prompt) for prompt in prompts], device=embeds.device)
    return encoded.map(lambda part: part * given.reshape(-1, *[1] * (part.ndim - 1)))


def predict(unet: Any, latents: Tensor, timestep_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the UNet's output for an image that was neither resized nor cropped."""
    height, width = (PIXELS_PER_LATENT * side for side in latents.shape[2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], dtype=latents.dtype, device=latents.device)
    conditions = {"text_embeds": prompt.pooled, "time_ids": sizes.expand(len(latents), 6)}
    output: Tensor = unet(latents, timestep_B, prompt.embeds, added_cond_kwargs=conditions, return_dict=False)[0]
    return output


def count_pooled_features(config: Any) -> int:
    """Return the number of features of the pooled text: what the six sizes leave of the conditions."""
    return int(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)


assert STABLE_DIFFUSION.distillation is not None
STABLE_DIFFUSION_XL = replace(
    STABLE_DIFFUSION,
    name="stable_diffusion_xl",
    pipeline_classes=("StableDiffusionXLPipeline",),
    encode=encode,
    distillation=replace(
        STABLE_DIFFUSION.distillation,
        pipeline_classes=("StableDiffusionXLPipeline",),
        predict=predict,
        pooled_features=count_pooled_features,
        published={
            "stabilityai/stable-diffusion-xl-base-1.0": PublishedModel(build_sdxl, TEXT_ENCODERS_PARAMETERS),
        },
    ),
)
