"""The description of a model family, which steering and distillation share; a new family is one module."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nasa.prompt_embeds import PromptEmbeds

Encode = Callable[[Any, list[str], int | None], PromptEmbeds]


def unpack_embeds(returned: Any) -> PromptEmbeds:
    """Return the positive prompt from an encoder's output without a mask."""
    return PromptEmbeds(returned[0] if isinstance(returned, tuple) else returned)


@dataclass(frozen=True)
class PublishedModel:
    """A model on the Hugging Face hub: its denoiser with random weights, and its text encoder's parameter count."""

    build_denoiser: Callable[[], Any]
    text_encoder_parameters: int


@dataclass(frozen=True)
class Distillation:
    """How a family's denoiser is trained, and how its one-step student is sampled.

    Attributes:
        pipeline_classes: diffusers pipelines that can be distilled.
        predict: returns the denoiser's output [B, C, H, W] for (model, latents [B, C, H, W], timesteps [B], prompt).
        output_layer: name of the denoiser's last layer, which stays in float32.
        one_step_scheduler: builds, from a scheduler's config, that of a student that starts at the last timestep.
        early_start_scheduler: the same for a student that starts earlier.
        call_options: options of the pipeline's call, in addition to one step and no guidance.
        text_shape: returns the number of tokens and features of a prompt, from the denoiser's config.
        masks_padding: whether prompts have an attention mask.
        lora_target_modules: peft's target_modules of the LoRA teacher.
        published: the Hub models whose architecture is known without their weights, by hub id.
    """

    pipeline_classes: tuple[str, ...]
    predict: Callable[[Any, Tensor, Tensor, PromptEmbeds], Tensor]
    output_layer: str
    one_step_scheduler: Callable[[Any], Any]
    early_start_scheduler: Callable[[Any], Any]
    text_shape: Callable[[Any], tuple[int, int]]
    call_options: Mapping[str, Any] = field(default_factory=dict)
    masks_padding: bool = False
    lora_target_modules: tuple[str, ...] = ("to_q", "to_v")
    published: Mapping[str, PublishedModel] = field(default_factory=dict)

    def make_empty_prompts(self, denoiser_config: Any, batch_size: int) -> PromptEmbeds:
        """Return prompts of zeros in the shape that the denoiser takes."""
        tokens, features = self.text_shape(denoiser_config)
        mask = torch.ones(batch_size, tokens) if self.masks_padding else None
        return PromptEmbeds(torch.zeros(batch_size, tokens, features), mask)


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
        extend: for joint attention, returns the denoiser's arguments that the negative and its mask change.
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
    extend: Callable[[dict[str, Any], Tensor, Tensor | None], dict[str, Any]] | None = None
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
