"""What `steer` needs to know of a family of pipelines. A new family is one file with one `Backbone`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Text = tuple[Tensor, Tensor | None]  # embeddings [N, T, D] and, where padding is masked, a mask [N, T]


@contextmanager
def guidance_property(pipe: Any) -> Iterator[Callable[[], bool]]:
    """Whether the pipeline runs classifier-free guidance, from its own property; without one it never does."""
    yield lambda: bool(getattr(pipe, "do_classifier_free_guidance", False))


@dataclass(frozen=True)
class Backbone:
    """How one family encodes a negative prompt and where its denoiser sees it.

    Attributes:
        model_class: the denoiser's class in diffusers.
        attribute: where the pipeline keeps it.
        encode: the negative prompts as the denoiser takes them, by the pipeline's own encoders; padded or cut to
            a length, None being the default of the pipeline's call.
        project: what the denoiser does to a text before its attention layers see it.
        norm_across_heads: whether queries and keys are normalised before they are split into heads.
        guidance: yields a function that tells whether the pipeline runs classifier-free guidance.
        guidance_in_calls: whether guidance is a second call of the denoiser, after the conditional one,
            and not a batch of [unconditional; conditional].
    """

    model_class: str
    attribute: str
    encode: Callable[[Any, list[str], int | None], Text]
    project: Callable[[Any, Tensor], Tensor] = lambda _, text: text
    norm_across_heads: bool = False
    guidance: Callable[[Any], AbstractContextManager[Callable[[], bool]]] = guidance_property
    guidance_in_calls: bool = False
