"""Exponential moving average of a student's weights."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(ema: Iterable[Tensor], current: Iterable[Tensor], decay: float, step: int) -> None:
    """ema <- d ema + (1 - d) current, in place, with d = min(decay, (1 + step) / (10 + step)).

    The growing decay lets a short run forget its start.
    """
    effective = min(decay, (1 + step) / (10 + step))
    for average, value in zip(ema, current, strict=True):
        average.lerp_(value.to(average.dtype), 1 - effective)
