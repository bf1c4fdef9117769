"""Z-Image and Z-Image-Turbo: image and caption in one sequence (`nasa.single_sequence`), captions without padding."""

from typing import Any

import torch
from torch import Tensor

from nasa.architectures import build_z_image
from nasa.families.family import CallArguments, Distillation, Family, PublishedModel
from nasa.families.flux2 import QWEN3_4B_PARAMETERS
from nasa.packing import DEFAULT_SIDE
from nasa.prompt_embeds import PromptEmbeds, pad_texts
from nasa.schedulers import build_student_flow

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts by the last layer but one of Qwen3; the pipeline's encoder changes the list that it is given."""
    encoded = pipe.encode_prompt(
        list(prompts),
        device=pipe._execution_device,
        do_classifier_free_guidance=False,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return unpack_captions(encoded)


def unpack_captions(returned: Any) -> PromptEmbeds:
    """Return the positive prompts, [T, D] each, as one tensor with a mask."""
    captions, _ = returned
    return pad_texts(captions)


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity, from image to noise.

    The transformer takes an image as a video of one frame, and its time runs from 0, noise, to 1, as its velocity does.
    """
    velocities = transformer(
        x=list(latents[:, :, None]), t=(1000 - time_B) / 1000, cap_feats=prompt.unpad(), return_dict=False
    )[0]
    return -torch.stack(velocities)[:, :, 0]


def extend(kwargs: dict[str, Any], text_BTD: Tensor, mask_BT: Tensor | None) -> dict[str, Any]:
    """Pair each caption with its negative.

    Raises:
        ValueError: The call has the Omni model's lists, or a ControlNet, which shares the layers that read texts.
    """
    if isinstance(kwargs["x"][0], list):
        raise ValueError("pipe: got a call of Z-Image-Omni; expected one image per prompt.")
    if kwargs.get("controlnet_block_samples") is not None:
        raise ValueError("pipe: got a call with a ControlNet; expected none while Z-Image is steered.")
    return {"cap_feats": list(zip(kwargs["cap_feats"], PromptEmbeds(text_BTD, mask_BT).unpad(), strict=True))}


def build_latents(config: Any, side: int) -> tuple[int, ...]:
    """Return the shape [C, H, W] of an image's latents, by default of 1024 pixels."""
    return int(config.in_channels), side or DEFAULT_SIDE, side or DEFAULT_SIDE


Z_IMAGE = Family(
    name="z_image",
    denoiser_class="ZImageTransformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    arguments=CallArguments(latents="x", timestep="t", text="cap_feats"),
    extend=extend,
    single_sequence=True,
    masked=True,
    unpack_prompt_embeds=unpack_captions,
    distillation=Distillation(
        pipeline_classes=("ZImagePipeline",),
        predict=predict,
        output_layer="all_final_layer.2-1",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (MAX_SEQUENCE_LENGTH, config.cap_feat_dim),
        latent_shape=build_latents,
        masks_padding=True,
        published={
            "Tongyi-MAI/Z-Image": PublishedModel(build_z_image, QWEN3_4B_PARAMETERS),
            "Tongyi-MAI/Z-Image-Turbo": PublishedModel(build_z_image, QWEN3_4B_PARAMETERS),
        },
    ),
)
