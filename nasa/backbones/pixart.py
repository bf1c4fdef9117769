"""PixArt-alpha and the one-step models made from it: YOSO, PixArt-DMD, SwiftBrush on PixArt."""

from typing import Any

from torch import Tensor

from nasa.backbones.base import Backbone, Text, embeds_and_mask

MAX_SEQUENCE_LENGTH = 120  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    embeds, mask, *_ = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return embeds, mask


def project(model: Any, text: Tensor) -> Tensor:
    projected: Tensor = model.caption_projection(text)
    return projected


PIXART = Backbone(
    model_class="PixArtTransformer2DModel",
    attribute="transformer",
    encode=encode,
    project=project,
    text_of=embeds_and_mask,
)
