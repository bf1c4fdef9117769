"""Encoded prompts as a denoiser takes them. B texts, T tokens, D features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class PromptEmbeds:
    """Embeddings [B, T, D] of B texts, and what else a denoiser takes of them.

    Attributes:
        embeds: [B, T, D].
        attention_mask: [B, T], nonzero for tokens that count, or None if all do.
        pooled: one embedding of each whole text, [B, P], or None.
    """

    embeds: Tensor
    attention_mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.embeds)

    def __getitem__(self, texts: slice | Tensor) -> "PromptEmbeds":
        """Return some of the texts: a slice, or those at indices int64 [N]."""
        return self.map(lambda part: part[texts])

    def to(self, device: Any) -> "PromptEmbeds":
        """Return the embeddings on a device."""
        return self.map(lambda part: part.to(device))

    def expand(self, batch_size: int) -> "PromptEmbeds":
        """Return one text repeated for `batch_size` images, without a copy."""
        return self.map(lambda part: part.expand(batch_size, *part.shape[1:]))

    def pad(self, tokens: int) -> "PromptEmbeds":
        """Return the texts padded with masked zeros to a number of tokens."""
        missing = tokens - self.embeds.shape[1]
        if missing <= 0:
            return self
        mask = self.embeds.new_ones(self.embeds.shape[:2]) if self.attention_mask is None else self.attention_mask
        return PromptEmbeds(F.pad(self.embeds, (0, 0, 0, missing)), F.pad(mask, (0, missing)), self.pooled)

    def trim(self) -> "PromptEmbeds":
        """Return the texts without the last tokens that all of them mask, and without a mask if no other is masked."""
        if self.attention_mask is None or self.attention_mask.is_meta:
            return self
        used = self.attention_mask.bool().any(dim=0).nonzero()
        tokens = int(used[-1]) + 1 if len(used) else 1
        mask = self.attention_mask[:, :tokens]
        return PromptEmbeds(self.embeds[:, :tokens], None if bool(mask.all()) else mask, self.pooled)

    def unpad(self) -> list[Tensor]:
        """Return each text alone, [T, D], without its masked tokens."""
        if self.attention_mask is None or self.attention_mask.is_meta:
            return list(self.embeds)
        return [text[mask] for text, mask in zip(self.embeds, self.attention_mask.bool(), strict=True)]

    def map(self, change: Callable[[Tensor], Tensor]) -> "PromptEmbeds":
        """Return the texts with each tensor changed."""
        return PromptEmbeds(**{name: change(part) for name, part in self.get_tensors().items()})

    def get_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by the field's name."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


def pad_texts(texts: Sequence[Tensor]) -> PromptEmbeds:
    """Return texts of their own lengths, [T, D] each, as one tensor with a mask."""
    mask = pad_sequence([torch.ones_like(text[:, 0]) for text in texts], batch_first=True)
    return PromptEmbeds(pad_sequence(list(texts), batch_first=True), mask)


def cat(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
    """Concatenate texts, padded to the longest; either all parts have a mask or none has, unless they are padded."""
    columns = [part.get_tensors() for part in _pad_to_longest(parts)]
    return PromptEmbeds(**{name: torch.cat([column[name] for column in columns]) for name in columns[0]})


def where(condition_B: Tensor, if_true: PromptEmbeds, if_false: PromptEmbeds) -> PromptEmbeds:
    """Select `if_true` or `if_false` for each text; either may be a single text for all."""
    first, second = (part.get_tensors() for part in _pad_to_longest((if_true, if_false)))
    return PromptEmbeds(
        **{
            name: torch.where(condition_B.reshape(-1, *[1] * (part.ndim - 1)), part, second[name])
            for name, part in first.items()
        }
    )


def _pad_to_longest(parts: Sequence[PromptEmbeds]) -> list[PromptEmbeds]:
    """Pad texts of different lengths; those of the same length get a mask of ones beside texts with a mask."""
    tokens = max(part.embeds.shape[1] for part in parts)
    padded = [part.pad(tokens) for part in parts]
    if all(part.attention_mask is None for part in padded):
        return padded
    return [
        part if part.attention_mask is not None else replace(part, attention_mask=torch.ones_like(part.embeds[..., 0]))
        for part in padded
    ]


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Return token ids int64 [B, T], padded or truncated to the tokenizer's maximal length."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids
