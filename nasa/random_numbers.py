"""Random numbers that are functions of seeds alone, whatever the device and the number of processes."""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise float32 [B, *shape], each item a function of its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])


def mix_seeds(*numbers: int) -> int:
    """Return one seed from several numbers; neighbouring numbers give unrelated streams."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ number) * 0xBF58476D1CE4E5B9 & (2**63 - 1)
        mixed ^= mixed >> 31
    return mixed
