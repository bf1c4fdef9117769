"""Checkpoints in one file: diffusers' own loader reads back every tensor, and the names are the original ones."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from small_pipelines import small_sd15, small_sd21, small_sdxl

from nasa.testing import TINY_PIPELINES
from pipeline import models
from pipeline.errors import UserError
from pipeline.models import single_file
from pipeline.models.single_file import build_single_file, list_parts, read_single_file
from pipeline.shapes import WEIGHTS

PIPELINES = {
    "sd15": small_sd15,
    "sd21": small_sd21,
    "sdxl": small_sdxl,
    "shapes": lambda: models.load_pipeline(WEIGHTS / "teacher"),
    "tiny": TINY_PIPELINES["stable-diffusion"],
    "tiny sdxl": TINY_PIPELINES["sdxl"],
}
NAMES = {  # of the published checkpoints: v1-5-pruned.ckpt, v2-1_768-ema-pruned.ckpt, sd_xl_base_1.0.safetensors
    "sd15": (
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.middle_block.2.emb_layers.1.bias",
        "first_stage_model.decoder.up.3.upsample.conv.bias",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ),
    "sd21": (
        "model.diffusion_model.time_embed.2.bias",
        "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight",
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.bias",
        "cond_stage_model.model.positional_embedding",
        "cond_stage_model.model.ln_final.bias",
    ),
    "sdxl": (
        "model.diffusion_model.label_emb.0.2.weight",
        "model.diffusion_model.input_blocks.7.1.transformer_blocks.2.ff.net.0.proj.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        "conditioner.embedders.1.model.text_projection",
        "conditioner.embedders.1.model.token_embedding.weight",
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_tensor_is_read_back_bit_for_bit(name, tmp_path):
    pipe = PIPELINES[name]()
    checkpoint = build_single_file(pipe)
    save_file(checkpoint, tmp_path / "model.safetensors")
    read = read_single_file(load_file(tmp_path / "model.safetensors"), pipe)
    expected = list_parts(pipe)
    assert read.keys() == expected.keys()
    for part, tensors in expected.items():
        assert read[part].keys() == tensors.keys()
        assert all(torch.equal(read[part][key], value) for key, value in tensors.items())
    assert sum(value.numel() for value in checkpoint.values()) == sum(
        value.numel() for tensors in expected.values() for value in tensors.values()
    )


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_diffusers_loads_the_file(name, tmp_path):
    pipe = PIPELINES[name]()
    save_file(build_single_file(pipe), tmp_path / "model.safetensors")
    pipe.save_pretrained(tmp_path / "student")
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    loaded = kind.from_single_file(
        tmp_path / "model.safetensors", config=str(tmp_path / "student"), local_files_only=True, safety_checker=None
    )
    for part, tensors in list_parts(pipe).items():
        found = list_parts(loaded)[part]
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], value) for key, value in tensors.items()), part


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_those_of_the_published_checkpoints(name):
    checkpoint = build_single_file(PIPELINES[name]())
    assert set(NAMES[name]) <= checkpoint.keys()
    for layer in ("q", "k", "v", "proj_out"):
        weight = checkpoint[f"first_stage_model.encoder.mid.attn_1.{layer}.weight"]
        assert weight.shape[2:] == (1, 1), "a convolution of one pixel"


def test_a_lost_tensor_is_an_error(monkeypatch):
    rename = single_file._rename_unet_key
    monkeypatch.setattr(
        single_file, "_rename_unet_key", lambda name, *more: rename(name.replace("mid_block", "middle"), *more)
    )
    with pytest.raises(
        UserError, match=r"^student/unet: got 'mid_block\..*'; expected a layer that Stable Diffusion's"
    ):
        build_single_file(small_sd15())


def test_another_family_is_an_error():
    expected = (
        r"^format: got 'PixArtAlphaPipeline'; expected StableDiffusionPipeline or StableDiffusionXLPipeline, whose"
    )
    with pytest.raises(UserError, match=expected):
        build_single_file(TINY_PIPELINES["pixart"]())
