"""Casting of a frozen model to bfloat16: its weights are cast, and what must stay exact is not."""

import pytest
import torch
from torch import nn

from nasa.mixed_precision import cast_frozen
from nasa.testing import TINY_PIPELINES


@pytest.mark.parametrize("family", ["sana", "qwen-image", "flux2-klein", "z-image"])
def test_the_frequencies_of_rotary_embeddings_stay_exact(family):
    encoder = TINY_PIPELINES[family]().text_encoder
    cast_frozen(encoder, torch.bfloat16)
    frequencies = [buffer for name, buffer in encoder.named_buffers() if name.endswith("inv_freq")]
    assert frequencies
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}
    assert next(encoder.parameters()).dtype == torch.bfloat16


def test_layers_that_diffusers_keeps_in_float32_stay():
    transformer = TINY_PIPELINES["wan"]().transformer
    cast_frozen(transformer, torch.bfloat16)
    kept = {name for name, parameter in transformer.named_parameters() if parameter.dtype == torch.float32}
    assert kept
    assert all(set(name.split(".")) & set(transformer._keep_in_fp32_modules) for name in kept)
    assert transformer.scale_shift_table.dtype == torch.float32
    assert transformer.blocks[0].attn2.to_q.weight.dtype == torch.bfloat16


def test_saved_statistics_are_cast_with_the_weights():
    layer = nn.BatchNorm2d(2)
    cast_frozen(layer, torch.bfloat16)
    assert layer.running_mean.dtype == layer.weight.dtype == torch.bfloat16
