"""FLUX.1-schnell and FLUX.1-dev."""

from typing import Any

import torch
from torch import Tensor

from nasa.backbones.base import Backbone, Text, text_behind_text

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call; FLUX.1-schnell takes 256


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    """T5's states; CLIP's pooled embedding stays positive."""
    embeds, _, _ = pipe.encode_prompt(
        prompts,
        prompt_2=None,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return embeds, None


def extend(kwargs: dict[str, Any], text_BTD: Tensor, _: Tensor | None) -> dict[str, Any]:
    """Text has no position in FLUX: all its ids are 0."""
    ids = kwargs["txt_ids"]
    more = ids.new_zeros(text_BTD.shape[1], ids.shape[-1])
    return {**text_behind_text(kwargs, text_BTD), "txt_ids": torch.cat([ids, more])}


FLUX = Backbone(
    model_class="FluxTransformer2DModel",
    attribute="transformer",
    encode=encode,
    extend=extend,
)
