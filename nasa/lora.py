"""LoRA adapters: their scale during a pipeline's call, and the detection of changed weights and adapters."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

ATTENTION_OPTIONS = ("cross_attention_kwargs", "attention_kwargs", "joint_attention_kwargs")


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
