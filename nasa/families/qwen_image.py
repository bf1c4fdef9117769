"""Qwen-Image and its few-step models, such as Qwen-Image-Lightning."""

from typing import Any

import torch
from torch import Tensor

from nasa.architectures import build_qwen_image
from nasa.families.family import Distillation, Family, PublishedModel, append_text, unpack_embeds_and_mask
from nasa.packing import build_packed_latents, pack, unpack
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import build_student_flow
from nasa.video_latents import decode_normalised

MAX_SEQUENCE_LENGTH = 512  # the default of the pipeline's call
QWEN_25_VL_7B_PARAMETERS = 8_292_166_656


def encode(pipe: Any, prompts: list[str], max_sequence_length: int | None) -> PromptEmbeds:
    """Encode prompts within the pipeline's template; there is a mask only if their lengths differ."""
    embeds, mask = pipe.encode_prompt(
        prompts,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        max_sequence_length=max_sequence_length or MAX_SEQUENCE_LENGTH,
    )
    return PromptEmbeds(embeds, mask)


def predict(transformer: Any, latents: Tensor, time_B: Tensor, prompt: PromptEmbeds) -> Tensor:
    """Return the predicted velocity; latents [B, C, H, W] are packed for the transformer."""
    height, width = (side // 2 for side in latents.shape[2:])
    prompt = prompt.trim()
    velocity: Tensor = transformer(
        hidden_states=pack(latents),
        timestep=time_B / 1000,
        encoder_hidden_states=prompt.embeds,
        encoder_hidden_states_mask=None if prompt.attention_mask is None else prompt.attention_mask.bool(),
        img_shapes=[[(1, height, width)]] * len(latents),
        return_dict=False,
    )[0]
    return unpack(velocity, height, width)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode an image as a video of one frame."""
    return decode_normalised(vae, latents[:, :, None])[:, :, 0]


def extend(kwargs: dict[str, Any], text_BTD: Tensor, mask_BT: Tensor | None) -> dict[str, Any]:
    """Append the text, with one mask over both texts; None means a text without padding."""
    positive, positive_mask = kwargs["encoder_hidden_states"], kwargs["encoder_hidden_states_mask"]
    masks = None
    if positive_mask is not None or mask_BT is not None:
        pairs = ((positive, positive_mask), (text_BTD, mask_BT))
        full = [text.new_ones(text.shape[:2]) if mask is None else mask for text, mask in pairs]
        masks = torch.cat([mask.bool() for mask in full], dim=1)
    return {**append_text(kwargs, text_BTD), "encoder_hidden_states_mask": masks}


QWEN_IMAGE = Family(
    name="qwen_image",
    denoiser_class="QwenImageTransformer2DModel",
    denoiser_part="transformer",
    encode=encode,
    extend=extend,
    masked=True,
    unpack_prompt_embeds=unpack_embeds_and_mask,
    distillation=Distillation(
        pipeline_classes=("QwenImagePipeline",),
        predict=predict,
        output_layer="proj_out",
        build_scheduler=build_student_flow,
        text_shape=lambda config: (MAX_SEQUENCE_LENGTH, config.joint_attention_dim),
        latent_shape=build_packed_latents,
        decode=decode,
        call_options={"true_cfg_scale": 1.0},
        masks_padding=True,
        published={"Qwen/Qwen-Image": PublishedModel(build_qwen_image, QWEN_25_VL_7B_PARAMETERS)},
    ),
)
