"""Stable Diffusion 1.x, 2.x and XL, and the one-step models made from them: SwiftBrush, InstaFlow, DMD2, LCM."""

from typing import Any

from nasa.backbones.base import Backbone, Text


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    """Padding counts: these models were trained to look at it. SDXL's pooled embedding stays positive."""
    if max_sequence_length is not None:
        raise ValueError("max_sequence_length: CLIP's is fixed; allowed: None")
    embeds = pipe.encode_prompt(
        prompts, device=pipe._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    return embeds, None


UNET = Backbone(model_class="UNet2DConditionModel", attribute="unet", encode=encode)
