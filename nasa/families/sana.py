"""SANA and SANA-Sprint."""

from typing import Any

from torch import Tensor

from nasa.architectures import build_sana_06b, build_sana_16b
from nasa.families.family import Distillation, Family, PublishedModel, unpack_embeds_and_mask
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_flow

MAX_SEQUENCE_LENGTH = 300  # the default of the pipeline's call
GEMMA_2_2B_PARAMETERS = 2_614_341_888


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts by Gemma, with their mask, and without the instruction that SANA's call puts before them.

    The default length is the pipeline's, or the tokenizer's own if that is shorter.
    """
    embeds, mask, *_ = pipe.encode_prompt(
        prompts,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or min(MAX_SEQUENCE_LENGTH, pipe.tokenizer.model_max_length),
    )
    return PromptEmbeds(embeds, mask)


def project(model: Any, text: Tensor) -> Tensor:
    """Project and normalise Gemma's features as the transformer does before its blocks."""
    projected: Tensor = model.caption_norm(model.caption_projection(text))
    return projected


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity."""
    velocity: Tensor = transformer(
        latents,
        encoder_hidden_states=prompt.embeds,
        timestep=time_B * transformer.config.timestep_scale,
        encoder_attention_mask=prompt.attention_mask,
        return_dict=False,
    )[0]
    return velocity


SANA = Family(
    name="sana",
    denoiser_class="SanaTransformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    project=project,
    unpack_prompt_embeds=unpack_embeds_and_mask,
    norm_across_heads=True,
    distillation=Distillation(
        pipeline_classes=("SanaPipeline",),
        predict=predict,
        output_layer="proj_out",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (MAX_SEQUENCE_LENGTH, config.caption_channels),
        pixels_per_latent=32,
        call_options={"guidance_scale": 1.0, "use_resolution_binning": False, "complex_human_instruction": None},
        masks_padding=True,
        published={
            "Efficient-Large-Model/Sana_1600M_1024px_diffusers": PublishedModel(build_sana_16b, GEMMA_2_2B_PARAMETERS),
            "Efficient-Large-Model/Sana_600M_1024px_diffusers": PublishedModel(build_sana_06b, GEMMA_2_2B_PARAMETERS),
        },
    ),
)
