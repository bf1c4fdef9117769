"""Stable Diffusion 3 and 3.5, the turbo models among them."""

from typing import Any

from torch import Tensor

from nasa.architectures import build_stable_diffusion_35_large, build_stable_diffusion_35_medium
from nasa.families.family import Distillation, Family, PublishedModel, append_text
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_flow

MAX_SEQUENCE_LENGTH = 256  # the default of the pipeline's call
CLIP_TOKENS = 77
TEXT_ENCODERS_PARAMETERS = 123_650_304 + 694_659_840 + 4_762_310_656  # CLIP L, OpenCLIP bigG and T5 v1.1 XXL


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode by all three encoders, with the pooled embeddings of both CLIPs.

    The default length is the pipeline's, or the T5 tokenizer's own if that is shorter.
    """
    longest = getattr(pipe.tokenizer_3, "model_max_length", MAX_SEQUENCE_LENGTH)
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompts,
        prompt_2=None,
        prompt_3=None,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or min(MAX_SEQUENCE_LENGTH, longest),
    )
    return PromptEmbeds(embeds, pooled=pooled)


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity."""
    velocity: Tensor = transformer(
        hidden_states=latents,
        timestep=time_B,
        encoder_hidden_states=prompt.embeds,
        pooled_projections=prompt.pooled,
        return_dict=False,
    )[0]
    return velocity


STABLE_DIFFUSION_3 = Family(
    name="stable_diffusion_3",
    denoiser_class="SD3Transformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    extend=append_text,
    distillation=Distillation(
        pipeline_classes=("StableDiffusion3Pipeline",),
        predict=predict,
        output_layer="proj_out",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (CLIP_TOKENS + MAX_SEQUENCE_LENGTH, config.joint_attention_dim),
        pooled_features=lambda config: int(config.pooled_projection_dim),
        published={
            "stabilityai/stable-diffusion-3.5-medium": PublishedModel(
                build_stable_diffusion_35_medium, TEXT_ENCODERS_PARAMETERS
            ),
            "stabilityai/stable-diffusion-3.5-large": PublishedModel(
                build_stable_diffusion_35_large, TEXT_ENCODERS_PARAMETERS
            ),
        },
    ),
)
