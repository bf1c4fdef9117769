"""Keys and values of negative prompts, computed once for many calls of a denoiser with cross-attention.

N negative prompts, T tokens, D features, H heads, K features of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from nasa import prompt_embeds
from nasa.attention import KeyValue
from nasa.prompt_embeds import PromptEmbeds


@dataclass(frozen=True)
class NegativeKeys:
    """A negative prompt as projected embeddings [N, T, D], and its K- and V- [N, H, T, K] of each steered layer."""

    prompt: PromptEmbeds
    layers: tuple[KeyValue, ...]

    def __len__(self) -> int:
        """Return N."""
        return len(self.prompt)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        parts = [*self.prompt.get_tensors().values(), *(part for layer in self.layers for part in layer)]
        return sum(part.nbytes for part in parts)


def cat(parts: Sequence[NegativeKeys]) -> NegativeKeys:
    """Concatenate negatives with equal numbers of tokens."""
    layers = zip(*(part.layers for part in parts), strict=True)
    return NegativeKeys(
        prompt_embeds.cat([part.prompt for part in parts]),
        tuple((torch.cat([key for key, _ in layer]), torch.cat([value for _, value in layer])) for layer in layers),
    )


@contextmanager
def use_negative_keys(layers: Sequence[Any], keys: NegativeKeys) -> Iterator[None]:
    """Let the processors of steered layers use these keys inside the context."""
    for layer, key_value in zip(layers, keys.layers, strict=True):
        layer.processor.negative_keys = key_value
    try:
        yield
    finally:
        for layer in layers:
            layer.processor.negative_keys = None
