"""Stable Diffusion 3 and 3.5, the turbo models among them."""

from typing import Any

from nasa.backbones.base import Backbone, Text, text_behind_text

MAX_SEQUENCE_LENGTH = 256  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    """The states of all three encoders; the pooled embedding stays positive."""
    embeds, *_ = pipe.encode_prompt(
        prompts,
        prompt_2=None,
        prompt_3=None,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return embeds, None


STABLE_DIFFUSION_3 = Backbone(
    model_class="SD3Transformer2DModel",
    attribute="transformer",
    encode=encode,
    extend=text_behind_text,
)
