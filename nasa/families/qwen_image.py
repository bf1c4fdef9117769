"""Qwen-Image and its few-step models, such as Qwen-Image-Lightning."""

from typing import Any

import torch
from torch import Tensor

from nasa.families.family import Family, append_text, unpack_embeds_and_mask
from nasa.prompt_embeds import PromptEmbeds

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts within the pipeline's template; there is a mask only if their lengths differ."""
    embeds, mask = pipe.encode_prompt(
        prompts,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds, mask)


def extend(kwargs: dict[str, Any], text_BTD: Tensor, mask_BT: Tensor | None) -> dict[str, Any]:
    """Append the text, with one mask over both texts; None means a text without padding."""
    positive, positive_mask = kwargs["encoder_hidden_states"], kwargs["encoder_hidden_states_mask"]
    masks = None
    if positive_mask is not None or mask_BT is not None:
        pairs = ((positive, positive_mask), (text_BTD, mask_BT))
        full = [text.new_ones(text.shape[:2]) if mask is None else mask for text, mask in pairs]
        masks = torch.cat([mask.bool() for mask in full], dim=1)
    return {**append_text(kwargs, text_BTD), "encoder_hidden_states_mask": masks}


QWEN_IMAGE = Family(
    name="qwen_image",
    denoiser_class="QwenImageTransformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    extend=extend,
    masked=True,
    unpack_prompt_embeds=unpack_embeds_and_mask,
)
