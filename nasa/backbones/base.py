"""What `steer` needs to know of a family of pipelines. A new family is one file with one `Backbone`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Text = tuple[Tensor, Tensor | None]  # embeddings [N, T, D] and, where padding is masked, a mask [N, T]


def embeds_alone(returned: Any) -> Text:
    """The positive prompt's embeddings out of what the pipeline's encoder returned."""
    embeds: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return embeds, None


def embeds_and_mask(returned: Any) -> Text:
    embeds, mask, *_ = returned
    return embeds, mask


def text_behind_text(kwargs: dict[str, Any], text_BTD: Tensor, _: Tensor | None = None) -> dict[str, Any]:
    """The denoiser's arguments with the negative's tokens behind the positive's."""
    return {"encoder_hidden_states": torch.cat([kwargs["encoder_hidden_states"], text_BTD], dim=1)}


@dataclass(frozen=True)
class Backbone:
    """How one family encodes a negative prompt and where its denoiser sees it.

    Attributes:
        model_class: the denoiser's class in diffusers.
        attribute: where the pipeline keeps it.
        encode: the negative prompts as the denoiser takes them, by the pipeline's own encoders; padded or cut to
            a length, None being the default of the pipeline's call.
        project: what the denoiser does to a text before its cross-attention sees it.
        norm_across_heads: whether queries and keys are normalised before they are split into heads.
        extend: for joint attention, the arguments that the negative and its mask change in a call of the denoiser.
        masked: whether joint attention masks the padding of a text.
        text_of: the positive prompt's text in what the pipeline's `encode_prompt` returns.
    """

    model_class: str
    attribute: str
    encode: Callable[[Any, list[str], int | None], Text]
    project: Callable[[Any, Tensor], Tensor] = lambda _, text: text
    norm_across_heads: bool = False
    extend: Callable[[dict[str, Any], Tensor, Tensor | None], dict[str, Any]] | None = None
    masked: bool = False
    text_of: Callable[[Any], Text] = embeds_alone
