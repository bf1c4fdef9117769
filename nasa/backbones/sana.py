"""SANA and SANA-Sprint."""

from typing import Any

from torch import Tensor

from nasa.backbones.base import Backbone, Text, embeds_and_mask

MAX_SEQUENCE_LENGTH = 300  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    embeds, mask, *_ = pipe.encode_prompt(
        prompts,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return embeds, mask


def project(model: Any, text: Tensor) -> Tensor:
    projected: Tensor = model.caption_norm(model.caption_projection(text))
    return projected


SANA = Backbone(
    model_class="SanaTransformer2DModel",
    attribute="transformer",
    encode=encode,
    project=project,
    text_of=embeds_and_mask,
    norm_across_heads=True,
)
