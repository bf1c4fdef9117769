"""Wan 2.1 text-to-video, and CausVid, which is made from it."""

from typing import Any

from torch import Tensor

from nasa.backbones.base import Backbone, Text

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> Text:
    """Padded with zeros, which the model sees; there is no mask."""
    embeds, _ = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        num_videos_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return embeds, None


def project(model: Any, text: Tensor) -> Tensor:
    projected: Tensor = model.condition_embedder.text_embedder(text)
    return projected


WAN = Backbone(
    model_class="WanTransformer3DModel",
    attribute="transformer",
    encode=encode,
    project=project,
    norm_across_heads=True,
)
