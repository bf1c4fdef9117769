"""LoRA adapters that a pipeline's call scales, and whether a module's weights and adapters are what they were."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ATTENTION_OPTIONS = ("cross_attention_kwargs", "attention_kwargs", "joint_attention_kwargs")


def lora_scale(arguments: dict[str, Any]) -> float:
    """Return the scale that a call of the denoiser gives its adapters."""
    options: list[dict[str, Any]] = [arguments[name] for name in ATTENTION_OPTIONS if arguments.get(name)]
    return float(options[0].get("scale", 1.0)) if options else 1.0


def adapter_state(layers: Iterable[Any]) -> list[Any]:
    """Return what changes when these layers' adapters or their weights in the sum change."""
    return [
        (part.active_adapters, part.disable_adapters, tuple(part.merged_adapters), dict(part.scaling))
        for part in _adapters(layers)
    ]


def module_state(part: nn.Module) -> Any:
    """Return what changes when a module's weights or adapters change; writes through `.data` go unnoticed."""
    plain = next(part.children(), None) is None
    weights = part._parameters.values() if plain else part.parameters()
    versions = [(id(weight), _version(weight)) for weight in weights if weight is not None]
    return versions if plain else (versions, adapter_state([part]))


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


@contextmanager
def scaled(models: Iterable[Any], scale: float = 1.0) -> Iterator[None]:
    """Multiply the adapters' scale inside the context, and restore it afterwards."""
    layers = _adapters(models)
    before = [dict(layer.scaling) for layer in layers]
    if scale != 1:
        for layer in layers:
            layer.scale_layer(scale)
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def _adapters(models: Iterable[Any]) -> list[Any]:
    return [part for model in models for part in model.modules() if isinstance(part, LoraLayer)]
