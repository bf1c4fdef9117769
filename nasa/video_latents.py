"""Latents of autoencoders that normalise each channel: Wan's and Qwen-Image's."""

from typing import Any

import torch
from torch import Tensor


def decode_normalised(vae: Any, latents: Tensor) -> Tensor:
    """Decode normalised latents [B, C, F, H, W] to frames [B, 3, F', H', W'] in about -1..1; differentiable."""
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(getattr(vae.config, f"latents_{name}")).to(latents) for name in ("mean", "std"))
    frames: Tensor = vae.decode(latents * std.view(shape) + mean.view(shape), return_dict=False)[0]
    return frames
