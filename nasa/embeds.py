"""Texts as a denoiser sees them: states, and where padding is masked, a mask. B texts, T tokens, D features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embeds:
    """`states` are [B, T, D]; `mask` is None, or [B, T] and not 0 where a token counts."""

    states: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, texts: slice) -> "Embeds":
        return self._each(lambda part: part[texts])

    def to(self, device: Any) -> "Embeds":
        return self._each(lambda part: part.to(device))

    def expand(self, batch: int) -> "Embeds":
        """One text for each of `batch` images."""
        return self._each(lambda part: part.expand(batch, *part.shape[1:]))

    def _each(self, change: Any) -> "Embeds":
        return Embeds(change(self.states), None if self.mask is None else change(self.mask))


def cat(parts: Sequence[Embeds]) -> Embeds:
    masks = [part.mask for part in parts if part.mask is not None]
    return Embeds(torch.cat([part.states for part in parts]), torch.cat(masks) if masks else None)


def where(condition_B: Tensor, yes: Embeds, no: Embeds) -> Embeds:
    """For each text, `yes` or `no`; either may be one text for all."""
    states = torch.where(condition_B[:, None, None], yes.states, no.states)
    if yes.mask is None or no.mask is None:
        return Embeds(states)
    return Embeds(states, torch.where(condition_B[:, None], yes.mask, no.mask))
