"""Stable Diffusion 3 and 3.5, the turbo models among them."""

from typing import Any

from nasa.families.family import Family, append_text
from nasa.prompt_embeds import PromptEmbeds

MAX_SEQUENCE_LENGTH = 256  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode by all three encoders; the pooled embedding stays that of the positive prompt."""
    embeds, *_ = pipe.encode_prompt(
        prompts,
        prompt_2=None,
        prompt_3=None,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds)


STABLE_DIFFUSION_3 = Family(
    name="stable_diffusion_3",
    denoiser_class="SD3Transformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    extend=append_text,
)
