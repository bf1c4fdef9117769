"""Tiny pipelines with real architectures and random weights, one for each family in `nasa.families`."""

from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLWan,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from nasa.testing.tiny_components import (
    TEXT_WIDTH,
    clip_config,
    set_up_for_inference,
    t5_config,
    tiny_autoencoder,
    tiny_gemma_tokenizer,
    tiny_t5_tokenizer,
)
from nasa.testing.tiny_joint_pipelines import (
    tiny_flux,
    tiny_flux2_klein,
    tiny_qwen_image,
    tiny_stable_diffusion_3,
    tiny_z_image,
)
from nasa.testing.tiny_stable_diffusion import tiny_stable_diffusion, tiny_tokenizer


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """Return a small SDXL pipeline."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=2 * TEXT_WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        norm_num_groups=4,
    )
    pipe = StableDiffusionXLPipeline(
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModel(clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    return set_up_for_inference(pipe)


def tiny_pixart() -> PixArtAlphaPipeline:
    """Return a small PixArt-alpha pipeline, which predicts noise and variance in eight channels."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=4,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=TEXT_WIDTH,
        norm_type="ada_norm_single",
        use_additional_conditions=False,
    )
    pipe = PixArtAlphaPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=T5EncoderModel(t5_config(T5Config)),
        vae=tiny_autoencoder(),
        transformer=transformer,
        scheduler=DDPMScheduler(),
    )
    return set_up_for_inference(pipe)


def tiny_pixart_sigma() -> PixArtSigmaPipeline:
    """Return PixArt-alpha's small parts in Sigma's pipeline, with its scheduler."""
    components = {**tiny_pixart().components, "scheduler": DPMSolverMultistepScheduler()}
    return set_up_for_inference(PixArtSigmaPipeline(**components))


def tiny_sana_sprint() -> SanaSprintPipeline:
    """Return a small SANA-Sprint pipeline."""
    torch.manual_seed(0)
    tokenizer = tiny_gemma_tokenizer()
    text = Gemma2Config(
        head_dim=8,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        attn_implementation="eager",
    )
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT_WIDTH,
        sample_size=16,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    blocks = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8),
            "qkv_multiscales": ((), (5,)),
            "layers_per_block": (1, 1),
        }.items()
    }
    vae = AutoencoderDC(latent_channels=4, attention_head_dim=2, upsample_block_type="interpolate", **blocks)
    pipe = SanaSprintPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text),
        vae=vae,
        transformer=transformer,
        scheduler=SCMScheduler(),
    )
    return set_up_for_inference(pipe)


def tiny_sana() -> SanaPipeline:
    """Return SANA-Sprint's small parts in the pipeline of the many-step model, without its embedded guidance."""
    parts = dict(tiny_sana_sprint().components)
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(**{**parts["transformer"].config, "guidance_embeds": False})
    parts |= {"transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    return set_up_for_inference(SanaPipeline(**parts))


def tiny_wan() -> WanPipeline:
    """Return a small Wan pipeline."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    pipe = WanPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(t5_config(UMT5Config)),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=transformer,
    )
    return set_up_for_inference(pipe)


TINY_PIPELINES = {
    "stable-diffusion": tiny_stable_diffusion,
    "sdxl": tiny_sdxl,
    "pixart": tiny_pixart,
    "pixart-sigma": tiny_pixart_sigma,
    "sana": tiny_sana,
    "sana-sprint": tiny_sana_sprint,
    "wan": tiny_wan,
    "flux": tiny_flux,
    "flux2-klein": tiny_flux2_klein,
    "stable-diffusion-3": tiny_stable_diffusion_3,
    "qwen-image": tiny_qwen_image,
    "z-image": tiny_z_image,
}

_SIZE = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
_TEXT = {"max_sequence_length": 16}  # the tests' prompts are padded to this
TINY_CALLS: dict[str, dict[str, Any]] = {  # options of a call of each: two steps, latents, no guidance
    "stable-diffusion": {**_SIZE, "guidance_scale": 0},
    "sdxl": {**_SIZE, "guidance_scale": 0},
    "pixart": {**_SIZE, **_TEXT, "guidance_scale": 0, "use_resolution_binning": False, "clean_caption": False},
    "pixart-sigma": {**_SIZE, **_TEXT, "guidance_scale": 0, "use_resolution_binning": False, "clean_caption": False},
    "sana": {
        **_SIZE,
        **_TEXT,
        "use_resolution_binning": False,
        "guidance_scale": 1,
        "complex_human_instruction": None,
    },
    "sana-sprint": {
        **_SIZE,
        **_TEXT,
        "use_resolution_binning": False,
        "intermediate_timesteps": 1.3,
        "complex_human_instruction": None,
    },
    "wan": {**_SIZE, **_TEXT, "height": 16, "width": 16, "num_frames": 5, "guidance_scale": 1},
    "flux": {**_SIZE, **_TEXT, "guidance_scale": 0},
    "flux2-klein": {**_SIZE, **_TEXT, "guidance_scale": 1},
    "stable-diffusion-3": {**_SIZE, **_TEXT, "guidance_scale": 0},
    "qwen-image": {**_SIZE, **_TEXT},
    "z-image": {**_SIZE, "guidance_scale": 0},
}

_FAMILIES = {  # keyed by the pipeline's class
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "sdxl",
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart-sigma",
    "SanaPipeline": "sana",
    "SanaSprintPipeline": "sana-sprint",
    "WanPipeline": "wan",
    "FluxPipeline": "flux",
    "Flux2KleinPipeline": "flux2-klein",
    "StableDiffusion3Pipeline": "stable-diffusion-3",
    "QwenImagePipeline": "qwen-image",
    "ZImagePipeline": "z-image",
}


def run_tiny_pipeline(pipe: Any, prompt: str | list[str], **options: Any) -> Any:
    """Return the images or videos of a tiny pipeline, called with its `TINY_CALLS`, which `options` override."""
    return pipe(prompt=prompt, **{**TINY_CALLS[_FAMILIES[type(pipe).__name__]], **options})[0]
