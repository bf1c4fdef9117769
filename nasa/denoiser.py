"""A denoiser that takes a negative prompt at each call, as training needs it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nasa.attention import Steering, install, steered
from nasa.compat import is_compiled_in_place
from nasa.families import Distillation, Family, distillable_pipelines, family_of_denoiser
from nasa.precision import autocast, run_in_float32
from nasa.prompt_embeds import PromptEmbeds
from nasa.rules import Scale


class SteerableDenoiser(nn.Module):
    """A diffusers denoiser whose cross-attention can be given a negative prompt at each call.

    With a `compute_dtype` other than float32 it enters autocast in its own forward, all but its output layer, so that
    the output is float32. The caller converts frozen weights (`nasa.precision.cast_frozen`).
    """

    def __init__(self, model: Any, family: Family, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.family = family
        self.compute_dtype = compute_dtype
        self.steering = Steering()
        install(model, self.steering)
        if compute_dtype != torch.float32:
            run_in_float32(output_layer(model, family))

    def forward(
        self,
        latents: Tensor,
        timestep_B: Tensor,
        prompt: PromptEmbeds,
        negative_prompt: PromptEmbeds | None = None,
        scale: Scale = 0.0,
    ) -> Tensor:
        """Return the output [B, C, H, W], steered by eqs. 7-9 away from the negative prompt if one is given."""
        with self._precision(latents.device.type):
            projected = None if negative_prompt is None else self._project(negative_prompt)
            with steered(self.steering, projected, self._as_input(scale, latents.device)):
                return distillation_of(self.family).predict(self.model, latents, timestep_B, prompt)

    def _project(self, prompt: PromptEmbeds) -> PromptEmbeds:
        return PromptEmbeds(self.family.project(self.model, prompt.embeds), prompt.attention_mask)

    def _as_input(self, scale: Scale, device: torch.device) -> Scale:
        """Return the scale as a tensor for a compiled denoiser, which recompiles for every number.

        0 stays a number, which means plain attention.
        """
        if not is_compiled_in_place(self.model) or isinstance(scale, Tensor) or scale == 0:
            return scale
        return torch.full((1,), scale, device=device)

    def _precision(self, device_type: str) -> AbstractContextManager[Any]:
        """Return the autocast context; the caller's stays in force where `compute_dtype` is float32."""
        return nullcontext() if self.compute_dtype == torch.float32 else autocast(device_type, self.compute_dtype)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute blocks in the backward pass, steered as in the forward pass."""

        def checkpointed(module: nn.Module, *args: Any) -> Any:
            at_forward = replace(self.steering)

            def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), steered(self.steering, at_forward.text, at_forward.scale)

            return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

        self.model.enable_gradient_checkpointing(checkpointed)


def steerable(
    model: Any, compute_dtype: torch.dtype = torch.float32, family: Family | None = None
) -> SteerableDenoiser:
    """Wrap a denoiser that can be distilled, ready to be steered at each call.

    Raises:
        ValueError: for a denoiser of a family that cannot be distilled.
    """
    return SteerableDenoiser(model, _distillable(model, family), compute_dtype)


def output_layer(model: Any, family: Family | None = None) -> nn.Module:
    """Return the last layer of a denoiser that can be distilled."""
    layer: nn.Module = getattr(model, distillation_of(_distillable(model, family)).output_layer)
    return layer


def distillation_of(family: Family) -> Distillation:
    """Return how a family is distilled.

    Raises:
        ValueError: for a family that cannot be distilled.
    """
    if family.distillation is None:
        raise ValueError(f"denoiser: got {family.denoiser_class}; expected a pipeline of {distillable_pipelines()}.")
    return family.distillation


def _distillable(model: Any, family: Family | None) -> Family:
    found = family or family_of_denoiser(model)
    distillation_of(found)
    return found
