"""The description of a model family, which steering and distillation share; a new family is one module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nasa.diffusion_process import DiffusionProcess, decode_latents
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import compute_flow_shift

Encode = Callable[[Any, list[str], int | None], PromptEmbeds]


def unpack_embeds(returned: Any) -> PromptEmbeds:
    """Return the positive prompt from an encoder's output without a mask."""
    return PromptEmbeds(returned[0] if isinstance(returned, tuple) else returned)


@dataclass(frozen=True)
class PublishedModel:
    """A model on the Hugging Face hub: its denoiser with random weights, and its text encoder's parameter count."""

    build_denoiser: Callable[[], Any]
    text_encoder_parameters: int


def build_square_latents(config: Any, side: int) -> tuple[int, ...]:
    """Return the shape [C, H, W] of an image's latents with this side, or of the default size if it is 0."""
    side = side or int(config.sample_size)
    return int(config.in_channels), side, side


@dataclass(frozen=True)
class Distillation:
    """How a family's denoiser is trained, and how its student of few steps is sampled.

    Attributes:
        pipeline_classes: diffusers pipelines that can be distilled.
        predict: returns the denoiser's output, in the latents' shape, for (model, latents, times [B], prompt). Latents
            are [B, C, H, W], of videos [B, C, F, H, W], scaled as the denoiser takes them, and not packed.
        output_layer: name of the denoiser's last layer, which stays in float32.
        build_scheduler: builds a student's scheduler from (the scheduler's config, the student's `DiffusionProcess`).
        text_shape: returns the number of tokens and features of a prompt, from the denoiser's config.
        pooled_features: returns the number of features of the pooled text; 0: there is none.
        latent_shape: returns one image's latent shape for (the denoiser's config, a side in latents or 0).
        decode: returns the images of (vae, latents), [B, 3, H, W] in about -1..1.
        pixels_per_latent: pixels of an image per latent, along one side.
        count_image_tokens: returns the number of the denoiser's tokens for an image's latent shape.
        compute_flow_shift: returns flow matching's shift for (the scheduler's config, the number of image tokens).
        latent_patch_size: the autoencoder's latents per latent of the denoiser, along one side.
        frames_per_latent: frames of a video per latent, the first of which has one; 0: the family makes images.
        takes_timesteps: whether the pipeline's call takes timesteps or sigmas, without which a student has one step.
        call_options: options of the pipeline's call that turn guidance off, and others that the student needs.
        masks_padding: whether prompts have an attention mask.
        lora_target_modules: peft's target_modules of the LoRA teacher.
        published: the Hub models whose architecture is known without their weights, by hub id.
    """

    pipeline_classes: tuple[str, ...]
    predict: Callable[[Any, Tensor, Tensor, PromptEmbeds], Tensor]
    output_layer: str
    build_scheduler: Callable[[Any, DiffusionProcess], Any]
    text_shape: Callable[[Any], tuple[int, int]]
    pooled_features: Callable[[Any], int] = lambda _: 0
    latent_shape: Callable[[Any, int], tuple[int, ...]] = build_square_latents
    decode: Callable[[Any, Tensor], Tensor] = decode_latents
    pixels_per_latent: int = 8
    count_image_tokens: Callable[[tuple[int, ...]], int] = lambda shape: shape[-2] * shape[-1] // 4
    compute_flow_shift: Callable[[Any, int], float] = compute_flow_shift
    latent_patch_size: int = 1
    frames_per_latent: int = 0
    takes_timesteps: bool = True
    call_options: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 0.0})
    masks_padding: bool = False
    lora_target_modules: tuple[str, ...] = ("to_q", "to_v")
    published: Mapping[str, PublishedModel] = field(default_factory=dict)

    def make_empty_prompts(self, denoiser_config: Any, batch_size: int) -> PromptEmbeds:
        """Return prompts of zeros in the shape that the denoiser takes."""
        tokens, features = self.text_shape(denoiser_config)
        pooled = self.pooled_features(denoiser_config)
        return PromptEmbeds(
            torch.zeros(batch_size, tokens, features),
            torch.ones(batch_size, tokens) if self.masks_padding else None,
            torch.zeros(batch_size, pooled) if pooled else None,
        )

    def build_call_options(self, diffusion: DiffusionProcess) -> dict[str, Any]:
        """Return the options of the pipeline's call with which it samples a student of this process."""
        timesteps = diffusion.student_timesteps
        options = {"num_inference_steps": len(timesteps), **self.call_options}
        if diffusion.is_one_full_step:
            return options
        if diffusion.prediction_type == "flow":  # the scheduler shifts them
            return {**options, "sigmas": [(timestep + 1) / diffusion.steps for timestep in timesteps]}
        return {**options, "timesteps": list(timesteps)}


@dataclass(frozen=True)
class CallArguments:
    """The names of the arguments in a call of the denoiser."""

    latents: str = "hidden_states"
    timestep: str = "timestep"
    text: str = "encoder_hidden_states"


@dataclass(frozen=True)
class Family:
    """A family of text-to-image or text-to-video models.

    Attributes:
        name: name of the family's module.
        denoiser_class: the denoiser's class in diffusers.
        denoiser_part: name of the denoiser among the pipeline's components.
        encode: encodes prompts with the pipeline's encoders as the denoiser takes them, padded or truncated to a
            length; None is the default of the pipeline's call.
        pipeline_classes: the family's pipelines, if another family has the same denoiser class.
        project: projects a text as the denoiser does before its cross-attention.
        norm_across_heads: whether queries and keys are normalised before they are split into heads.
        arguments: the names of the latents, the timestep and the text in a call of the denoiser.
        extend: for joint attention, returns the denoiser's arguments that the negative and its mask change.
        single_sequence: whether joint attention takes image and text as one sequence (`nasa.single_sequence`).
        masked: whether joint attention masks the padding of a text.
        unpack_prompt_embeds: returns the positive prompt from the output of the pipeline's `encode_prompt`.
        distillation: how the family is distilled; None if it can only be steered.
    """

    name: str
    denoiser_class: str
    denoiser_part: str
    encode: Encode
    pipeline_classes: tuple[str, ...] = ()
    project: Callable[[Any, Tensor], Tensor] = lambda _, text: text
    norm_across_heads: bool = False
    arguments: CallArguments = CallArguments()
    extend: Callable[[dict[str, Any], Tensor, Tensor | None], dict[str, Any]] | None = None
    single_sequence: bool = False
    masked: bool = False
    unpack_prompt_embeds: Callable[[Any], PromptEmbeds] = unpack_embeds
    distillation: Distillation | None = None


def unpack_embeds_and_mask(returned: Any) -> PromptEmbeds:
    """Return the positive prompt from an encoder's output of embeddings, their mask and more."""
    embeds, mask, *_ = returned
    return PromptEmbeds(embeds, mask)


def append_text(kwargs: dict[str, Any], text_BTD: Tensor, _: Tensor | None = None) -> dict[str, Any]:
    """Return the denoiser's text argument with the negative's tokens appended to the positive's."""
    return {"encoder_hidden_states": torch.cat([kwargs["encoder_hidden_states"], text_BTD], dim=1)}
