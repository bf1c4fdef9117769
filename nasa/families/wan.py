"""Wan 2.1 text-to-video, and CausVid, which is made from it."""

from typing import Any

from torch import Tensor

from nasa.architectures import build_wan_13b
from nasa.families.family import Distillation, Family, PublishedModel
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_flow
from nasa.video_latents import decode_normalised

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call
LATENT_SHAPE = (21, 60, 104)  # 81 frames of 480 x 832 pixels: four frames, and 8 x 8 pixels, per latent
SQUARE_LATENT_FRAMES = 5  # of a clip of another size: 17 frames
UMT5_XXL_PARAMETERS = 5_680_910_336


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts padded with zeros, without a mask: the model attends to the padding."""
    embeds, _ = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        num_videos_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds)


def project(model: Any, text: Tensor) -> Tensor:
    """Project T5's features as the transformer does before its blocks."""
    projected: Tensor = model.condition_embedder.text_embedder(text)
    return projected


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity of a video's latents [B, C, F, H, W]."""
    velocity: Tensor = transformer(
        hidden_states=latents, timestep=time_B, encoder_hidden_states=prompt.embeds, return_dict=False
    )[0]
    return velocity


def build_video_latents(config: Any, side: int) -> tuple[int, ...]:
    """Return the latent shape [C, F, H, W] of a short square clip with this side, or of Wan's default if it is 0."""
    return config.in_channels, *((SQUARE_LATENT_FRAMES, side, side) if side else LATENT_SHAPE)


WAN = Family(
    name="wan",
    denoiser_class="WanTransformer3DModel",
    denoiser_part="transformer",
    encode=encode,
    project=project,
    norm_across_heads=True,
    distillation=Distillation(
        pipeline_classes=("WanPipeline",),
        predict=predict,
        output_layer="proj_out",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (MAX_SEQUENCE_LENGTH, config.text_dim),
        latent_shape=build_video_latents,
        decode=decode_normalised,
        frames_per_latent=4,
        takes_timesteps=False,
        call_options={"guidance_scale": 1.0},
        published={"Wan-AI/Wan2.1-T2V-1.3B-Diffusers": PublishedModel(build_wan_13b, UMT5_XXL_PARAMETERS)},
    ),
)
