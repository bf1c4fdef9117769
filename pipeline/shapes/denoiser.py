"""The teacher's denoiser, a small Stable Diffusion UNet that predicts v, and its noise schedule."""

from diffusers import DDIMScheduler, UNet2DConditionModel

from pipeline.shapes.autoencoder import LATENT_SIZE
from pipeline.shapes.clip import WIDTH


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet for latents [B, 4, 16, 16]; it has no attention at their full resolution."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's scaled-linear schedule, with v-prediction as in Stable Diffusion 2.1."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
