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


def build_sana_16b() -> Any:
    """Return SANA 1.6B's transformer at 1024 pixels."""
    return diffusers.SanaTransformer2DModel(sample_size=32)


def build_sana_06b() -> Any:
    """Return SANA 0.6B's transformer at 1024 pixels."""
    return diffusers.SanaTransformer2DModel(
        sample_size=32,
        num_layers=28,
        num_attention_heads=36,
        num_cross_attention_heads=16,
        cross_attention_head_dim=72,
        cross_attention_dim=1152,
    )


def build_stable_diffusion_35_medium() -> Any:
    """Return Stable Diffusion 3.5 medium's transformer, with image-only attention in its first 13 blocks."""
    return _build_stable_diffusion_35(24, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)))


def build_stable_diffusion_35_large() -> Any:
    """Return Stable Diffusion 3.5 large's transformer."""
    return _build_stable_diffusion_35(38, pos_embed_max_size=192)


def _build_stable_diffusion_35(layers: int, **more: Any) -> Any:
    """Return a transformer with as many heads of 64 features as layers."""
    return diffusers.SD3Transformer2DModel(
        sample_size=128,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        num_attention_heads=layers,
        caption_projection_dim=64 * layers,
        qk_norm="rms_norm",
        **more,
    )


def build_flux_dev() -> Any:
    """Return FLUX.1-dev's transformer."""
    return diffusers.FluxTransformer2DModel(guidance_embeds=True)


def build_qwen_image() -> Any:
    """Return Qwen-Image's transformer."""
    return diffusers.QwenImageTransformer2DModel()


def build_wan_13b() -> Any:
    """Return Wan 2.1 1.3B's transformer."""
    return diffusers.WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30)


def build_flux2_klein_4b() -> Any:
    """Return FLUX.2 Klein 4B's transformer."""
    return diffusers.Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


def build_z_image() -> Any:
    """Return the transformer of Z-Image and Z-Image-Turbo."""
    return diffusers.ZImageTransformer2DModel(axes_lens=[1536, 512, 512])
