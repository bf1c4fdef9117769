"""Tiny pipelines with joint attention: FLUX, Stable Diffusion 3, Qwen-Image and Z-Image."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from nasa.testing.tiny_components import (
    TEXT_WIDTH,
    clip_config,
    set_up_for_inference,
    t5_config,
    tiny_autoencoder,
    tiny_qwen_tokenizer,
    tiny_t5_tokenizer,
)
from nasa.testing.tiny_stable_diffusion import tiny_tokenizer

CHAT_TEMPLATE_WITH_ROLES = (  # the empty prompt has tokens too
    "{% for message in messages %}<|im_start|>user\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def tiny_flux() -> FluxPipeline:
    """Return a small FLUX pipeline."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=T5EncoderModel(t5_config(T5Config)),
        tokenizer_2=tiny_t5_tokenizer(),
        transformer=transformer,
    )
    return set_up_for_inference(pipe)


def tiny_stable_diffusion_3() -> StableDiffusion3Pipeline:
    """Return a small Stable Diffusion 3.5 pipeline, with image-only attention in its first block."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_WIDTH,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=tiny_autoencoder(),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        tokenizer=tiny_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=T5EncoderModel(t5_config(T5Config, 2 * TEXT_WIDTH)),
        tokenizer_3=tiny_t5_tokenizer(),
    )
    return set_up_for_inference(pipe)


def tiny_qwen_image() -> QwenImagePipeline:
    """Return a small Qwen-Image pipeline."""
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    text = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(text),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return set_up_for_inference(pipe)


def tiny_flux2_klein() -> Flux2KleinPipeline:
    """Return a small FLUX.2 Klein pipeline; its text encoder has the 28 layers that the pipeline reads three of."""
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * TEXT_WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return set_up_for_inference(pipe)


def tiny_z_image() -> ZImagePipeline:
    """Return a small Z-Image pipeline, whose learned padding is random too: diffusers starts it at 0."""
    torch.manual_seed(0)
    tokenizer = tiny_qwen_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE_WITH_ROLES
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[600, 32, 32],
    )
    for padding in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(padding)
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_autoencoder(),
        text_encoder=Qwen3Model(text),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return set_up_for_inference(pipe)
