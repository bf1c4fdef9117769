"""Encoded prompts as a denoiser takes them. B texts, T tokens, D features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptEmbeds:
    """Embeddings [B, T, D] of B texts, and their attention mask [B, T], nonzero for tokens that count, or None."""

    embeds: Tensor
    attention_mask: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.embeds)

    def __getitem__(self, texts: slice | Tensor) -> "PromptEmbeds":
        """Return some of the texts: a slice, or those at indices int64 [N]."""
        return self._map(lambda part: part[texts])

    def to(self, device: Any) -> "PromptEmbeds":
        """Return the embeddings on a device."""
        return self._map(lambda part: part.to(device))

    def expand(self, batch_size: int) -> "PromptEmbeds":
        """Return one text repeated for `batch_size` images, without a copy."""
        return self._map(lambda part: part.expand(batch_size, *part.shape[1:]))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "PromptEmbeds":
        mask = self.attention_mask
        return PromptEmbeds(change(self.embeds), None if mask is None else change(mask))


def cat(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
    """Concatenate texts; either all parts have a mask or none has."""
    masks = [part.attention_mask for part in parts if part.attention_mask is not None]
    return PromptEmbeds(torch.cat([part.embeds for part in parts]), torch.cat(masks) if masks else None)


def where(condition_B: Tensor, if_true: PromptEmbeds, if_false: PromptEmbeds) -> PromptEmbeds:
    """Select `if_true` or `if_false` for each text; either may be a single text for all."""
    embeds = torch.where(condition_B[:, None, None], if_true.embeds, if_false.embeds)
    if if_true.attention_mask is None or if_false.attention_mask is None:
        return PromptEmbeds(embeds)
    return PromptEmbeds(embeds, torch.where(condition_B[:, None], if_true.attention_mask, if_false.attention_mask))


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Return token ids int64 [B, T], padded or truncated to the tokenizer's maximal length."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids
