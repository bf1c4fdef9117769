"""Private attributes of torch, accelerate and diffusers; tests/nasa/test_compat.py holds each."""

from typing import Any


def original_module(model: Any) -> Any:
    """Return the module that `torch.compile(model)` wraps, or the model itself."""
    return getattr(model, "_orig_mod", model)


def is_compiled_in_place(model: Any) -> bool:
    """Tell whether `model.compile()` was called."""
    return getattr(model, "_compiled_call_impl", None) is not None


def offload_hook(model: Any) -> Any:
    """Return accelerate's hook of a model that is offloaded, or None."""
    return getattr(model, "_hf_hook", None)


def cache_config(model: Any) -> Any:
    """Return the configuration of the cache over steps that diffusers' `enable_cache` set, or None."""
    return getattr(model, "_cache_config", None)
