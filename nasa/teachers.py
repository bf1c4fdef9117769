"""Two teachers in one denoiser: adapters off is the frozen teacher psi, adapters on the LoRA teacher pi."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from nasa.diffusion import Diffusion
from nasa.guidance import classifier_free_guidance
from nasa.parameterization import alpha_sigma, to_eps
from nasa.prompt_embeds import PromptEmbeds, cat


def add_lora(model: Any, *, rank: int, scaling: int, targets: Sequence[str]) -> None:
    """Freeze the denoiser and add the LoRA teacher to it; `scaling` is peft's lora_alpha (SwiftBrush's gamma)."""
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=scaling, target_modules=list(targets)), model)


@torch.no_grad()
def merged_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of the equivalent denoiser without adapters: W + (scaling / rank) B A."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    weights = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if "lora_" not in name
    }
    for name, layer in adapted.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


def lora_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """Return the adapters' parameters."""
    return [parameter for name, parameter in denoiser.named_parameters() if "lora_" in name]


@contextmanager
def frozen_teacher(denoiser: nn.Module) -> Iterator[None]:
    """Turn the adapters and gradients off inside the context.

    It flips the layers' switch alone: peft's own `disable_adapters` also rewrites `requires_grad`, which
    an optimizer that hooked the parameters must not see change.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def merged_teacher(denoiser: nn.Module) -> Iterator[None]:
    """Merge the LoRA teacher as W + (scaling / rank) B A inside the context: one product a layer in place of three.

    For looking at it alone, without gradient. Weights in half precision stay as they are, since a small B A would be
    rounded negative in them.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    layers = [layer for layer in layers if layer.get_base_layer().weight.dtype.itemsize >= 4]
    kept = [layer.get_base_layer().weight.data for layer in layers]
    with torch.no_grad():
        for layer, weight in zip(layers, kept, strict=True):
            layer.get_base_layer().weight.data = weight + layer.get_delta_weight("default")
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, weight in zip(layers, kept, strict=True):
                layer.get_base_layer().weight.data = weight
                layer._disable_adapters = False


def guided_eps(
    denoiser: nn.Module,
    diffusion: Diffusion,
    x_t: Tensor,
    timestep_B: Tensor,
    positive: PromptEmbeds,
    negative: PromptEmbeds,
    guidance_scale: float,
) -> Tensor:
    """Eqs. 4 and 5: eps^(x_t, t) of a denoiser, both conditions in one batch; [B, C, H, W]."""
    alpha, sigma = alpha_sigma(diffusion.alphas_cumprod, timestep_B)
    both = cat([negative.expand(len(positive)), positive])
    output = denoiser(torch.cat([x_t, x_t]), timestep_B.repeat(2), both)
    eps_away, eps_towards = (to_eps(part, x_t, alpha, sigma, diffusion.prediction_type) for part in output.chunk(2))
    return classifier_free_guidance(eps_away, eps_towards, guidance_scale)


def conditional_eps(
    denoiser: nn.Module, diffusion: Diffusion, x_t: Tensor, timestep_B: Tensor, prompt: PromptEmbeds
) -> Tensor:
    """eps(x_t, t, y) of a denoiser without guidance; [B, C, H, W]."""
    alpha, sigma = alpha_sigma(diffusion.alphas_cumprod, timestep_B)
    return to_eps(denoiser(x_t, timestep_B, prompt), x_t, alpha, sigma, diffusion.prediction_type)
