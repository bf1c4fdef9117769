"""LoRA adapters that a pipeline's call scales: by how much, and as they were afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer

ATTENTION_OPTIONS = ("cross_attention_kwargs", "attention_kwargs", "joint_attention_kwargs")


def lora_scale(arguments: dict[str, Any]) -> float:
    """The scale that a call of the denoiser gives its adapters, from the call's arguments."""
    options: list[dict[str, Any]] = [arguments[name] for name in ATTENTION_OPTIONS if arguments.get(name)]
    return float(options[0].get("scale", 1.0)) if options else 1.0


def adapter_state(layers: Iterable[Any]) -> list[Any]:
    """What tells that the adapters of these layers are others, or count more or less, than before."""
    return [
        (part.active_adapters, part.disable_adapters, tuple(part.merged_adapters), dict(part.scaling))
        for part in _adapters(layers)
    ]


@contextmanager
def scaled(models: Iterable[Any], scale: float = 1.0) -> Iterator[None]:
    """Within the context the adapters count `scale` times; afterwards as before, whoever scaled them meanwhile."""
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
