"""SANA and SANA-Sprint."""

from typing import Any

from torch import Tensor

from nasa.families.family import Family, unpack_embeds_and_mask
from nasa.prompt_embeds import PromptEmbeds

MAX_SEQUENCE_LENGTH = 300  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts by Gemma, with their mask."""
    embeds, mask, *_ = pipe.encode_prompt(
        prompts,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds, mask)


def project(model: Any, text: Tensor) -> Tensor:
    """Project and normalise Gemma's features as the transformer does before its blocks."""
    projected: Tensor = model.caption_norm(model.caption_projection(text))
    return projected


SANA = Family(
    name="sana",
    denoiser_class="SanaTransformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    project=project,
    unpack_prompt_embeds=unpack_embeds_and_mask,
    norm_across_heads=True,
)
