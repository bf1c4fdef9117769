"""Wan 2.1 text-to-video, and CausVid, which is made from it."""

from typing import Any

from torch import Tensor

from nasa.families.family import Family
from nasa.prompt_embeds import PromptEmbeds

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts padded with zeros, without a mask: the model attends to the padding."""
    embeds, _ = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        num_videos_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds)


def project(model: Any, text: Tensor) -> Tensor:
    """Project T5's features as the transformer does before its blocks."""
    projected: Tensor = model.condition_embedder.text_embedder(text)
    return projected


WAN = Family(
    name="wan",
    denoiser_class="WanTransformer3DModel",
    denoiser_part="transformer",
    encode=encode,
    project=project,
    norm_across_heads=True,
)
