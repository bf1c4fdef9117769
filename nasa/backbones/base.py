"""What `steer` needs to know of a family of pipelines. A new family is one file with one `Backbone`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Text = tuple[Tensor, Tensor | None]  # embeddings [N, T, D] and, where padding is masked, a mask [N, T]


@contextmanager
def guidance_property(pipe: Any) -> Iterator[Callable[[], bool]]:
    """Whether the pipeline runs classifier-free guidance, from its own property; without one it never does."""
    yield lambda: bool(getattr(pipe, "do_classifier_free_guidance", False))


@contextmanager
def unconditional_calls(model: Any) -> Iterator[Callable[[], bool]]:
    """Whether the call at hand is the unconditional one, where guidance is a second call of the denoiser.

    diffusers names each call through the model's `cache_context`.
    """
    plain, names = model.cache_context, [""]

    @contextmanager
    def listening(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        names.append(name)
        try:
            with plain(name, *args, **kwargs):
                yield
        finally:
            names.pop()

    model.cache_context = listening
    try:
        yield lambda: names[-1] == "uncond"
    finally:
        del model.cache_context


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
        guidance: yields a function that tells whether a batch is [unconditional; conditional].
        guidance_in_calls: whether guidance is a second call of the denoiser and not half of a batch.
    """

    model_class: str
    attribute: str
    encode: Callable[[Any, list[str], int | None], Text]
    project: Callable[[Any, Tensor], Tensor] = lambda _, text: text
    norm_across_heads: bool = False
    extend: Callable[[dict[str, Any], Tensor, Tensor | None], dict[str, Any]] | None = None
    masked: bool = False
    guidance: Callable[[Any], AbstractContextManager[Callable[[], bool]]] = guidance_property
    guidance_in_calls: bool = False
