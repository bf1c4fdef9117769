"""FLUX.1-schnell and FLUX.1-dev."""

from typing import Any

import torch
from torch import Tensor

from nasa.architectures import build_flux_dev
from nasa.families.family import Distillation, Family, PublishedModel, append_text
from nasa.packing import build_packed_latents, pack, unpack
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_flow

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call; FLUX.1-schnell takes 256
EMBEDDED_GUIDANCE = 3.5  # the default of the pipeline's call, for FLUX.1-dev; teacher and student are called with it
TEXT_ENCODERS_PARAMETERS = 123_060_480 + 4_762_310_656  # CLIP ViT-L/14 and T5 v1.1 XXL


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode by T5, with CLIP's pooled embedding."""
    embeds, pooled, _ = pipe.encode_prompt(
        prompts,
        prompt_2=None,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds, pooled=pooled)


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity; latents [B, C, H, W] are packed for the transformer."""
    height, width = (side // 2 for side in latents.shape[2:])
    guidance = latents.new_full((len(latents),), EMBEDDED_GUIDANCE) if transformer.config.guidance_embeds else None
    velocity: Tensor = transformer(
        hidden_states=pack(latents),
        timestep=time_B / 1000,
        guidance=guidance,
        pooled_projections=prompt.pooled,
        encoder_hidden_states=prompt.embeds,
        txt_ids=latents.new_zeros(prompt.embeds.shape[1], 3),
        img_ids=build_position_ids(height, width).to(latents),
        return_dict=False,
    )[0]
    return unpack(velocity, height, width)


def build_position_ids(height: int, width: int) -> Tensor:
    """Return the position (0, row, column) of each packed token, [L, 3]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)


def extend(kwargs: dict[str, Any], text_BTD: Tensor, _: Tensor | None) -> dict[str, Any]:
    """Append the text and its position ids, which are all 0 in FLUX."""
    ids = kwargs["txt_ids"]
    more = ids.new_zeros(text_BTD.shape[1], ids.shape[-1])
    return {**append_text(kwargs, text_BTD), "txt_ids": torch.cat([ids, more])}


FLUX = Family(
    name="flux",
    denoiser_class="FluxTransformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    extend=extend,
    distillation=Distillation(
        pipeline_classes=("FluxPipeline",),
        predict=predict,
        output_layer="proj_out",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (MAX_SEQUENCE_LENGTH, config.joint_attention_dim),
        pooled_features=lambda config: int(config.pooled_projection_dim),
        latent_shape=build_packed_latents,
        call_options={"guidance_scale": EMBEDDED_GUIDANCE},
        published={"black-forest-labs/FLUX.1-dev": PublishedModel(build_flux_dev, TEXT_ENCODERS_PARAMETERS)},
    ),
)
