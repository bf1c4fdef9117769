"""LoRA adapters: creation, merging, files, scale during a pipeline's call, and detection of changes."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"  # [R, I] and [O, R]; of a convolution [R, I, K, K] and [O, R, 1, 1]
ATTENTION_OPTIONS = ("cross_attention_kwargs", "attention_kwargs", "joint_attention_kwargs")


def add_lora(model: Any, *, rank: int, lora_alpha: int, target_modules: Sequence[str]) -> None:
    """Freeze a denoiser and add trainable LoRA adapters; for the LoRA teacher `lora_alpha` is SwiftBrush's gamma."""
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=list(target_modules)), model)


@torch.no_grad()
def merge_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of the equivalent denoiser without adapters, W + (lora_alpha / rank) B A."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    weights = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if "lora_" not in name
    }
    for name, layer in adapted.items():
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight("default")
    return weights


@torch.no_grad()
def collect_adapters(model: Any) -> dict[str, Tensor]:
    """Return the adapters' matrices by their names in a LoRA file, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.

    B is multiplied by lora_alpha / rank, so that W + B A are the merged weights. A file without lora_alpha means the
    same to every reader; ComfyUI, for one, does not read the lora_alpha that diffusers writes into a file's metadata.
    """
    adapters = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            adapters[name + LORA_A] = layer.lora_A["default"].weight.detach().clone()
            adapters[name + LORA_B] = layer.scaling["default"] * layer.lora_B["default"].weight.detach()
    return adapters


def load_lora(pipe: Any, weights: Mapping[str, Tensor]) -> None:
    """Add the adapters of a LoRA file to a pipeline, also to one for which diffusers has no loader, such as PixArt's.

    Args:
        pipe: the pipeline that the LoRA was trained on.
        weights: the file's tensors, named `PART.LAYER.lora_A.weight`; the part is the pipeline's denoiser.

    Raises:
        ValueError: The weights are of no part of the pipeline.
    """
    first = next(iter(weights), "")
    part = first.partition(".")[0]
    denoiser = getattr(pipe, part, None) if part else None
    if not isinstance(denoiser, nn.Module) or not all(name.startswith(f"{part}.") for name in weights):
        raise ValueError(f"weights: got names such as {first!r}; expected all of one part of the pipeline.")
    adapters = {name.removeprefix(f"{part}."): value for name, value in weights.items()}
    ranks = {name.removesuffix(LORA_A): len(value) for name, value in adapters.items() if name.endswith(LORA_A)}
    patterns = {f"^{re.escape(name)}": rank for name, rank in ranks.items()}
    config = LoraConfig(target_modules=list(ranks), rank_pattern=patterns, alpha_pattern=dict(patterns))
    inject_adapter_in_model(config, denoiser, state_dict=adapters)
    set_peft_model_state_dict(denoiser, adapters)


def get_lora_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """Return the adapters' parameters."""
    return [parameter for name, parameter in denoiser.named_parameters() if "lora_" in name]


def get_lora_scale(arguments: dict[str, Any]) -> float:
    """Return the LoRA scale among the arguments of a denoiser call."""
    options: list[dict[str, Any]] = [arguments[name] for name in ATTENTION_OPTIONS if arguments.get(name)]
    return float(options[0].get("scale", 1.0)) if options else 1.0


def fingerprint_adapters(layers: Iterable[Any]) -> list[Any]:
    """Return a value that changes when these layers' adapters or adapter scales change."""
    return [
        (part.active_adapters, part.disable_adapters, tuple(part.merged_adapters), dict(part.scaling))
        for part in _find_adapters(layers)
    ]


def fingerprint_module(part: nn.Module) -> Any:
    """Return a value that changes when a module's weights or adapters change; it misses writes through `.data`."""
    is_leaf = next(part.children(), None) is None
    weights = part._parameters.values() if is_leaf else part.parameters()
    versions = [(id(weight), _get_version(weight)) for weight in weights if weight is not None]
    return versions if is_leaf else (versions, fingerprint_adapters([part]))


def _get_version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


@contextmanager
def scale_adapters(models: Iterable[Any], scale: float = 1.0) -> Iterator[None]:
    """Multiply the adapters' scale inside the context, and restore it afterwards."""
    layers = _find_adapters(models)
    scalings = [dict(layer.scaling) for layer in layers]
    if scale != 1:
        for layer in layers:
            layer.scale_layer(scale)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, scalings, strict=True):
            layer.scaling.update(scaling)


def _find_adapters(models: Iterable[Any]) -> list[Any]:
    return [part for model in models for part in model.modules() if isinstance(part, LoraLayer)]
