"""Mixed precision inside a denoiser's own forward, with its output layer in float32.

DeepSpeed's engines disable autocast around the module that they call on CUDA, so a context entered outside the module
has no effect. The output layer stays in float32 because a one-step student divides its output's rounding error by
alpha_t: bfloat16 has 8 bits, and 1 / alpha_T is 15 for Stable Diffusion.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from nasa.meta_autocast import MetaAutocast


def autocast(device_type: str, compute_dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return an autocast context for `compute_dtype`; float32 disables autocast."""
    if device_type == "meta":
        return MetaAutocast(compute_dtype)
    if compute_dtype == torch.float32:
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, compute_dtype)


def run_in_float32(layer: Any) -> None:
    """Make a layer compute in float32, also within autocast and on half-precision inputs."""
    original_forward = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        with autocast(hidden_states.device.type, torch.float32):
            return original_forward(hidden_states.float(), *args, **kwargs)

    layer.forward = forward


def cast_frozen(model: nn.Module, dtype: torch.dtype, *, keep: nn.Module | None = None) -> None:
    """Cast a frozen model's floating-point weights in place, except those of its submodule `keep`.

    Trained weights must stay in float32: half precision would round an optimizer's small updates away. So do buffers
    that are not saved, such as the frequencies of rotary embeddings, and the layers that diffusers keeps in float32.
    """
    excluded = {id(tensor) for tensor in (*keep.parameters(), *keep.buffers())} if keep is not None else set()
    for tensor in _iter_castable(model):
        if tensor.is_floating_point() and id(tensor) not in excluded:
            tensor.data = tensor.data.to(dtype)


def _iter_castable(model: nn.Module) -> Iterator[Tensor]:
    in_float32 = set(getattr(model, "_keep_in_fp32_modules", None) or ()) if isinstance(model, ModelMixin) else set()
    for prefix, module in model.named_modules():
        saved = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        for name, tensor in {**module._parameters, **{name: module._buffers[name] for name in saved}}.items():
            if tensor is not None and not in_float32 & {*prefix.split("."), name}:
                yield tensor
