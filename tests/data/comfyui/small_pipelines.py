"""Stable Diffusion 1.5, 2.1 and XL: their blocks, heads and norm groups at small width, with random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from nasa.testing.tiny_stable_diffusion import tiny_tokenizer

WIDTH, GROUPS = 32, 32  # ComfyUI's networks have 32 norm groups; at 16 x 16 the least has 2 x 2 pixels to normalise
XL_TIME_WIDTH, VOCABULARY = 256, 49408  # fixed in ComfyUI's SDXL and CLIP


def build_text_config(*, hidden_act="quick_gelu", width=WIDTH):
    return CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=width, hidden_act=hidden_act,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def build_autoencoder():
    return AutoencoderKL(
        block_out_channels=(GROUPS,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=GROUPS, layers_per_block=2, sample_size=64,
    )  # fmt: skip


def build_unet(channels, **changes):
    attended = ("CrossAttnDownBlock2D",) * (len(channels) - 1)
    options = {
        "sample_size": 16, "block_out_channels": channels, "layers_per_block": 2, "norm_num_groups": GROUPS,
        "down_block_types": (*attended, "DownBlock2D"), "cross_attention_dim": WIDTH,
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * len(attended)),
    }  # fmt: skip
    return UNet2DConditionModel(**{**options, **changes})


def build_scheduler(prediction_type):
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def set_up(pipe):
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def small_sd15():
    torch.manual_seed(0)
    return _build(build_unet((32, 64, 64, 64), attention_head_dim=8), build_text_config(), "epsilon")


def small_sd21():
    """Return the architecture of version 2: linear projections, heads of one width, OpenCLIP's activation."""
    torch.manual_seed(1)
    unet = build_unet((32, 64, 64, 64), attention_head_dim=[2, 4, 4, 4], use_linear_projection=True)
    return _build(unet, build_text_config(hidden_act="gelu"), "v_prediction")


def _build(unet, text, prediction_type):
    pipe = StableDiffusionPipeline(
        vae=build_autoencoder(), text_encoder=CLIPTextModel(text), tokenizer=tiny_tokenizer(), unet=unet,
        scheduler=build_scheduler(prediction_type), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return set_up(pipe)


def small_sdxl():
    torch.manual_seed(2)
    unet = build_unet(
        (32, 64, 64), cross_attention_dim=3 * WIDTH, attention_head_dim=[2, 4, 4], use_linear_projection=True,
        transformer_layers_per_block=[1, 2, 3], addition_embed_type="text_time",
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_time_embed_dim=XL_TIME_WIDTH, projection_class_embeddings_input_dim=6 * XL_TIME_WIDTH + 2 * WIDTH,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=build_autoencoder(), text_encoder=CLIPTextModel(build_text_config()),
        text_encoder_2=CLIPTextModelWithProjection(build_text_config(hidden_act="gelu", width=2 * WIDTH)),
        tokenizer=tiny_tokenizer(), tokenizer_2=tiny_tokenizer(), unet=unet, scheduler=build_scheduler("epsilon"),
        add_watermarker=False,
    )  # fmt: skip
    return set_up(pipe)
