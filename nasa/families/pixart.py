"""PixArt-alpha and the one-step models made from it: YOSO, PixArt-DMD, SwiftBrush on PixArt."""

from typing import Any

from torch import Tensor

from nasa.architectures import build_pixart_alpha
from nasa.families.family import Distillation, Encode, Family, PublishedModel, unpack_embeds_and_mask
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_ddpm

TEXT_LENGTH = 120  # the default of the pipeline's call
T5_XXL_PARAMETERS = 4_762_310_656  # T5 v1.1 XXL's encoder


def build_t5_encoder(default_length: int) -> Encode:
    """Return a function that encodes prompts with T5, padded to a default length, with a mask."""

    def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
        embeds, mask, *_ = pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            num_images_per_prompt=1,
            device=pipe._execution_device,
            max_sequence_length=max_sequence_length or default_length,
        )
        return PromptEmbeds(embeds, mask)

    return encode


def project(model: Any, text: Tensor) -> Tensor:
    """Project T5's features as the transformer does before its blocks."""
    projected: Tensor = model.caption_projection(text)
    return projected


def predict(transformer: Any, latents: Tensor, timestep_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted noise at 512 pixels, without the variance that the model also predicts."""
    noise_and_variance: Tensor = transformer(
        latents,
        encoder_hidden_states=prompt.embeds,
        encoder_attention_mask=prompt.attention_mask,
        timestep=timestep_B,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return noise_and_variance[:, : latents.shape[1]]


DISTILLATION = Distillation(
    pipeline_classes=("PixArtAlphaPipeline",),
    predict=predict,
    output_layer="proj_out",
    build_scheduler=build_student_ddpm,
    text_shape=lambda config: (TEXT_LENGTH, config.caption_channels),
    call_options={"guidance_scale": 0.0, "use_resolution_binning": False, "clean_caption": False},
    masks_padding=True,
    published={"PixArt-alpha/PixArt-XL-2-512x512": PublishedModel(build_pixart_alpha, T5_XXL_PARAMETERS)},
)

PIXART = Family(
    name="pixart",
    denoiser_class="PixArtTransformer2DModel",
    denoiser_part="transformer",
    encode=build_t5_encoder(TEXT_LENGTH),
    project=project,
    unpack_prompt_embeds=unpack_embeds_and_mask,
    distillation=DISTILLATION,
)
