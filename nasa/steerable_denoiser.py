"""A denoiser that takes a negative prompt with each call, for training."""

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nasa.attention import SteeredAttnProcessor, apply_negative_prompt, repeat_per_image, restore_steering
from nasa.attention_rules import Scale
from nasa.compat import is_compiled_in_place
from nasa.families import Distillation, Family, find_denoiser_family, list_distillable_pipelines
from nasa.joint_attention import JointSteering
from nasa.mixed_precision import autocast, run_in_float32
from nasa.negative_keys import NegativeKeys, use_negative_keys
from nasa.processor_installation import create_steering, install_steering
from nasa.prompt_embeds import PromptEmbeds


class SteerableDenoiser(nn.Module):
    """A diffusers denoiser whose cross-attention or joint attention takes a negative prompt with each call.

    A `compute_dtype` other than float32 enables autocast within `forward`, except for the output layer, so that the
    output is float32. The caller casts frozen weights (`nasa.mixed_precision.cast_frozen`).
    """

    def __init__(self, model: Any, family: Family, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.compute_dtype = compute_dtype
        self.steering = create_steering(family)
        install_steering(model, family, self.steering)
        if family.extend:
            model.register_forward_pre_hook(self._append_negative, with_kwargs=True)
        if compute_dtype != torch.float32:
            run_in_float32(get_output_layer(model, family))

    def forward(
        self,
        latents: Tensor,
        timestep_B: Tensor,
        prompt: PromptEmbeds,
        negative_prompt: PromptEmbeds | NegativeKeys | None = None,
        scale: Scale = 0.0,
    ) -> Tensor:
        """Return the output [B, C, H, W], steered by eqs. 7-9 away from the negative prompt if one is given."""
        with ExitStack() as stack:
            stack.enter_context(self._autocast(latents.device.type))
            scale = self._scale_as_input(scale, latents.device)
            stack.enter_context(apply_negative_prompt(self.steering, self._prepare(negative_prompt), scale))
            if isinstance(negative_prompt, NegativeKeys):
                stack.enter_context(use_negative_keys(self._list_steered_layers(), negative_prompt))
            return require_distillation(self.family).predict(self.model, latents, timestep_B, prompt)

    @torch.no_grad()
    def compute_negative_keys(self, negative_prompt: PromptEmbeds) -> NegativeKeys:
        """Return K- and V- of a negative prompt, for many calls with the same weights.

        Raises:
            ValueError: The denoiser has joint attention, where keys depend on the image.
        """
        if self.family.extend:
            raise ValueError(f"denoiser: got {self.family.denoiser_class}; expected one with cross-attention.")
        projected = self._project(negative_prompt)
        with self._autocast(projected.embeds.device.type):
            keys = [layer.processor.project_key_value(layer, projected.embeds) for layer in self._list_steered_layers()]
        return NegativeKeys(projected, tuple(keys))

    def _list_steered_layers(self) -> list[Any]:
        layers = self.model.modules()
        return [layer for layer in layers if isinstance(getattr(layer, "processor", None), SteeredAttnProcessor)]

    def _append_negative(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Append the negative's tokens to the positive's, for joint attention, as a forward pre-hook."""
        negative = self.steering.negative_prompt
        if self.steering.is_plain or negative is None:
            return None
        assert self.family.extend is not None
        assert isinstance(self.steering, JointSteering)
        positive = kwargs[self.family.arguments.text]
        self.steering.positive_tokens = len(positive[0])
        negative = negative.map(lambda part: repeat_per_image(part, len(positive)))
        return args, {**kwargs, **self.family.extend(kwargs, negative.embeds.to(positive[0]), negative.attention_mask)}

    def _prepare(self, negative: PromptEmbeds | NegativeKeys | None) -> PromptEmbeds | None:
        return negative.prompt if isinstance(negative, NegativeKeys) else negative and self._project(negative)

    def _project(self, prompt: PromptEmbeds) -> PromptEmbeds:
        prompt = prompt.trim() if self.family.extend else prompt
        return PromptEmbeds(self.family.project(self.model, prompt.embeds), prompt.attention_mask)

    def _scale_as_input(self, scale: Scale, device: torch.device) -> Scale:
        """Return the scale as a tensor for a compiled denoiser, which recompiles for every number but 0."""
        if not is_compiled_in_place(self.model) or isinstance(scale, Tensor) or scale == 0:
            return scale
        return torch.full((1,), scale, device=device)

    def _autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Return the autocast context; for float32 the caller's context stays in force."""
        return nullcontext() if self.compute_dtype == torch.float32 else autocast(device_type, self.compute_dtype)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass with the steering of the forward pass."""

        def checkpointed(module: nn.Module, *args: Any) -> Any:
            snapshot = replace(self.steering)

            def build_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), restore_steering(self.steering, snapshot)

            return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=build_contexts)

        self.model.enable_gradient_checkpointing(checkpointed)


def make_steerable(
    model: Any, compute_dtype: torch.dtype = torch.float32, family: Family | None = None
) -> SteerableDenoiser:
    """Wrap a denoiser of a family that can be distilled.

    Raises:
        ValueError: The denoiser's family cannot be distilled.
    """
    return SteerableDenoiser(model, _find_distillable_family(model, family), compute_dtype)


def get_output_layer(model: Any, family: Family | None = None) -> nn.Module:
    """Return the last layer of a denoiser that can be distilled."""
    layer: nn.Module = model.get_submodule(require_distillation(_find_distillable_family(model, family)).output_layer)
    return layer


def require_distillation(family: Family) -> Distillation:
    """Return a family's distillation.

    Raises:
        ValueError: The family cannot be distilled.
    """
    if family.distillation is None:
        raise ValueError(
            f"denoiser: got {family.denoiser_class}; expected a pipeline of {list_distillable_pipelines()}."
        )
    return family.distillation


def _find_distillable_family(model: Any, family: Family | None) -> Family:
    family = family or find_denoiser_family(model)
    require_distillation(family)
    return family
