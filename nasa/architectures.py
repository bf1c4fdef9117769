"""Architectures of published denoisers, with random weights or, under `torch.device("meta")`, with none."""

from typing import Any

import diffusers

_STABLE_DIFFUSION = {"sample_size": 64, "block_out_channels": (320, 640, 1280, 1280)}


def build_stable_diffusion_15() -> Any:
    """Return Stable Diffusion 1.5's UNet."""
    return diffusers.UNet2DConditionModel(**_STABLE_DIFFUSION, cross_attention_dim=768)


def build_stable_diffusion_21() -> Any:
    """Return Stable Diffusion 2.1-base's UNet."""
    return diffusers.UNet2DConditionModel(
        **_STABLE_DIFFUSION,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )


def build_sdxl() -> Any:
    """Return SDXL's UNet."""
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


def build_pixart_alpha() -> Any:
    """Return the transformer of PixArt-alpha and PixArt-Sigma at 512 pixels."""
    return diffusers.PixArtTransformer2DModel(sample_size=64, caption_channels=4096, use_additional_conditions=False)
