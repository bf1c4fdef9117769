"""Latents packed into tokens of 2 x 2, as FLUX and Qwen-Image take them. B batch, C channels, L tokens."""

from typing import Any

from torch import Tensor

DEFAULT_SIDE = 128  # latents of 1024 pixels


def build_packed_latents(config: Any, side: int) -> tuple[int, ...]:
    """Return the shape [C, H, W] of an image's latents before packing, by default of 1024 pixels."""
    side = side or DEFAULT_SIDE
    return int(config.in_channels) // 4, side, side


def pack(latents_BCHW: Tensor) -> Tensor:
    """Return the latents as tokens [B, H/2 W/2, 4 C], row by row; channels, then rows and columns of a token."""
    batch, channels, height, width = latents_BCHW.shape
    parts = latents_BCHW.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens_BLD: Tensor, height: int, width: int) -> Tensor:
    """Return latents [B, C, 2 height, 2 width] of tokens in `height` rows and `width` columns."""
    batch, _, features = tokens_BLD.shape
    parts = tokens_BLD.reshape(batch, height, width, features // 4, 2, 2)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // 4, 2 * height, 2 * width)
