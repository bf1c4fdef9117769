"""Two teachers in one denoiser: the frozen teacher psi without adapters, the LoRA teacher pi with them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from nasa.classifier_free_guidance import classifier_free_guidance
from nasa.diffusion_process import DiffusionProcess
from nasa.prompt_embeds import PromptEmbeds, cat


@contextmanager
def use_frozen_teacher(denoiser: nn.Module, adapter_weight: float = 0.0) -> Iterator[None]:
    """Disable gradients inside the context, and scale the adapters by a weight, 0 of which disables them.

    peft's `disable_adapters` is not used, since it also changes `requires_grad`, which must stay constant for an
    optimizer with hooks on the parameters.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    scalings = [layer.scaling["default"] for layer in layers]
    for layer, scaling in zip(layers, scalings, strict=True):
        layer._disable_adapters = not adapter_weight
        layer.scaling["default"] = adapter_weight * scaling if adapter_weight else scaling
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer._disable_adapters = False
            layer.scaling["default"] = scaling


@contextmanager
def use_merged_teacher(denoiser: nn.Module) -> Iterator[None]:
    """Merge the LoRA teacher as W + (lora_alpha / rank) B A inside the context, which saves two products per layer.

    For inference only. Half-precision weights are not merged, since they would round a small B A away, and neither are
    those that ZeRO stage 3 partitions, since a rank holds a part of them and gathers the rest during the layer's call.
    """
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    layers = [layer for layer in layers if _can_merge(layer.get_base_layer().weight)]
    base_weights = [layer.get_base_layer().weight.data for layer in layers]
    with torch.no_grad():
        for layer, weight in zip(layers, base_weights, strict=True):
            layer.get_base_layer().weight.data = weight + layer.get_delta_weight("default")
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, weight in zip(layers, base_weights, strict=True):
                layer.get_base_layer().weight.data = weight
                layer._disable_adapters = False


def _can_merge(weight: Tensor) -> bool:
    """Tell whether a weight is whole and in float32; DeepSpeed marks the parameters that it partitions by `ds_id`."""
    return weight.dtype.itemsize >= 4 and not hasattr(weight, "ds_id")


def guided_output(
    denoiser: nn.Module,
    diffusion: DiffusionProcess,
    x_t: Tensor,
    timestep_B: Tensor,
    positive: PromptEmbeds,
    negative: PromptEmbeds,
    guidance_scale: float,
) -> Tensor:
    """Return a denoiser's output guided by eqs. 4 and 5, [B, C, H, W]; both conditions are in one batch.

    Guidance of the output is guidance of eps: the conversion is affine and the weights sum to one.
    """
    if guidance_scale == 1:  # the negative has no weight
        conditional: Tensor = denoiser(x_t, diffusion.times[timestep_B], positive)
        return conditional
    both = cat([negative.expand(len(positive)), positive])
    output = denoiser(torch.cat([x_t, x_t]), diffusion.times[timestep_B].repeat(2), both)
    uncond, cond = output.chunk(2)
    return classifier_free_guidance(uncond, cond, guidance_scale)
