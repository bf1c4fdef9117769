"""The private attributes of libraries that `nasa.compat` reads."""

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import FirstBlockCacheConfig
from torch import nn

from nasa import compat
from nasa.testing import TINY_PIPELINES


def test_a_compiled_module_is_unwrapped():
    model = nn.Linear(1, 1)
    assert compat.unwrap_compiled(torch.compile(model, backend="eager")) is model
    assert compat.unwrap_compiled(model) is model


def test_a_module_that_is_compiled_in_place_is_recognised():
    model = nn.Linear(1, 1)
    assert not compat.is_compiled_in_place(model)
    model.compile(backend="eager")
    assert compat.is_compiled_in_place(model)


def test_the_hook_of_an_offloaded_model_is_found():
    model, hook = nn.Linear(1, 1), ModelHook()
    assert compat.get_offload_hook(model) is None
    add_hook_to_module(model, hook)
    assert compat.get_offload_hook(model) is hook


def test_the_cache_of_a_denoiser_is_found():
    model = TINY_PIPELINES["flux"]().transformer
    assert compat.get_cache_config(model) is None
    model.enable_cache(FirstBlockCacheConfig())
    assert isinstance(compat.get_cache_config(model), FirstBlockCacheConfig)
