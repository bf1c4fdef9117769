"""Exponential moving average of a student's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(ema: Mapping[str, Tensor], current: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Update ema <- d ema + (1 - d) current, in place and by name, with d = min(decay, (1 + step) / (10 + step)).

    The growing decay reduces the weight of the initial values in a short run.
    """
    assert ema.keys() == current.keys()
    effective = min(decay, (1 + step) / (10 + step))
    for name, average in ema.items():
        average.lerp_(current[name].to(average.dtype), 1 - effective)
