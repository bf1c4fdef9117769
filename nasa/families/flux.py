"""FLUX.1-schnell and FLUX.1-dev."""

from typing import Any

import torch
from torch import Tensor

from nasa.families.family import Family, append_text
from nasa.prompt_embeds import PromptEmbeds

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call; FLUX.1-schnell takes 256


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode by T5; CLIP's pooled embedding stays that of the positive prompt."""
    embeds, _, _ = pipe.encode_prompt(
        prompts,
        prompt_2=None,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds)


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
)
