"""Access to private attributes of torch, accelerate and diffusers; tests/nasa/test_compat.py checks each."""

from typing import Any


def unwrap_compiled(model: Any) -> Any:
    """Return the module that `torch.compile(model)` wraps, or the model itself."""
    return getattr(model, "_orig_mod", model)


def is_compiled_in_place(model: Any) -> bool:
    """Return whether `model.compile()` was called."""
    return getattr(model, "_compiled_call_impl", None) is not None


def get_offload_hook(model: Any) -> Any:
    """Return accelerate's hook of an offloaded model, or None."""
    return getattr(model, "_hf_hook", None)


def get_cache_config(model: Any) -> Any:
    """Return the configuration that diffusers' `enable_cache` set, or None."""
    return getattr(model, "_cache_config", None)
