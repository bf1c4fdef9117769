"""PixArt-alpha and the one-step models made from it: YOSO, PixArt-DMD, SwiftBrush on PixArt."""

from typing import Any

from torch import Tensor

from nasa.architectures import pixart_alpha
from nasa.families.base import Distillation, Encode, Family, PublishedModel, embeds_and_mask
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import predicted_image

TEXT_LENGTH = 120  # the default of the pipeline's call
T5_XXL_PARAMETERS = 4_762_310_656  # T5 v1.1 XXL's encoder


def encode_to(default_length: int) -> Encode:
    """Return T5's encoding of prompts, padded to a default length and masked."""

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
    """Return the predicted noise at 512 pixels; the variance that the model predicts beside it is dropped."""
    both: Tensor = transformer(
        latents,
        encoder_hidden_states=prompt.embeds,
        encoder_attention_mask=prompt.attention_mask,
        timestep=timestep_B,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return both[:, : latents.shape[1]]


DISTILLATION = Distillation(
    pipeline_classes=("PixArtAlphaPipeline",),
    predict=predict,
    output_layer="proj_out",
    one_step_scheduler=predicted_image,
    early_start_scheduler=predicted_image,
    text_shape=lambda config: (TEXT_LENGTH, config.caption_channels),
    call_options={"use_resolution_binning": False},
    masks_padding=True,
    published={"PixArt-alpha/PixArt-XL-2-512x512": PublishedModel(pixart_alpha, T5_XXL_PARAMETERS)},
)

PIXART = Family(
    name="pixart",
    denoiser_class="PixArtTransformer2DModel",
    denoiser_part="transformer",
    encode=encode_to(TEXT_LENGTH),
    project=project,
    prompt_embeds_of=embeds_and_mask,
    distillation=DISTILLATION,
)
