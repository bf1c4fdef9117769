"""Invalid open_clip checkpoints are reported in one line; the scorers' tests check the numbers."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.models.clip import open_clip
from pipeline.models.clip.features import check_clip

NUM_POSITIONS = 4**2 + 1


def build_checkpoint(width=160, text=64, embed=16):
    """Return a checkpoint with one block in each tower."""
    shapes = {
        "logit_scale": (),
        "positional_embedding": (77, text),
        "token_embedding.weight": (99, text),
        "text_projection": (text, embed),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (NUM_POSITIONS, width),
        "visual.conv1.weight": (width, 3, 14, 14),
        "visual.proj": (width, embed),
    }
    for prefix, size in (("", text), ("visual.", width)):
        block = f"{prefix}transformer.resblocks.0"
        norms = ("ln_pre", "ln_post") if prefix else ("ln_final",)
        shapes |= {f"{prefix}{norm}.{kind}": (size,) for norm in norms for kind in ("weight", "bias")}
        shapes |= {f"{block}.{norm}.{kind}": (size,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{block}.attn.in_proj_weight": (3 * size, size), f"{block}.attn.in_proj_bias": (3 * size,)}
        for part, rows, columns in (
            ("attn.out_proj", size, size),
            ("mlp.c_fc", 2 * size, size),
            ("mlp.c_proj", size, 2 * size),
        ):
            shapes |= {f"{block}.{part}.weight": (rows, columns), f"{block}.{part}.bias": (rows,)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def check_table(table, tmp_path, architecture="ViT-H-14"):
    torch.save({"state_dict": table}, tmp_path / "weights.pt")
    open_clip.check(tmp_path / "weights.pt", architecture, "metric.weights")


@pytest.mark.parametrize("save", [torch.save, save_file], ids=["torch", "safetensors"])
def test_sizes_are_read_from_the_shapes(tmp_path, save):
    file = tmp_path / f"weights{'.safetensors' if save is save_file else '.bin'}"
    save(build_checkpoint() | {"input_resolution": torch.tensor(56)}, file)
    model = open_clip.load(file, "ViT-H-14", "metric.weights")
    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.image_size, vision.patch_size) == (160, 2, 56, 14)
    assert (vision.intermediate_size, vision.num_hidden_layers, vision.hidden_act) == (320, 1, "gelu")
    assert (text.hidden_size, text.num_attention_heads, text.intermediate_size) == (64, 1, 128)
    assert model.config.projection_dim == 16
    assert model.dtype == torch.float32
    assert not model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.conv1.weight"), "lacks 'visual.conv1.weight'"),
        (lambda t: t.pop("ln_final.bias"), "lacks 'text_model.final_layer_norm.bias'"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds an unknown 'extra'"),
        (lambda t: t.update({"visual.ln_post.bias": torch.zeros(3)}), "has another shape of 'vision_model.post_layer"),
        (lambda t: t.clear(), "lacks 'visual.conv1.weight'"),
    ],
    ids=["no image tower", "missing", "unknown", "shape", "empty"],
)
def test_unexpected_tensors_are_reported_in_one_line(tmp_path, change, message):
    table = build_checkpoint()
    change(table)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        check_table(table, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("metric.weights: ")


def test_a_width_that_the_heads_do_not_divide_is_reported(tmp_path):
    with pytest.raises(UserError, match="the image tower is 160 wide, not a multiple of 88"):
        check_table(build_checkpoint(), tmp_path, "ViT-g-14")


@pytest.mark.parametrize(
    ("content", "suffix"),
    [(b"", ".pt"), (b"<html>", ".pt"), (b"<html>", ".safetensors"), (b"PK\x03\x04", ".bin")],
    ids=["empty", "page", "safetensors", "cut"],
)
def test_an_unreadable_file_is_reported_in_one_line(tmp_path, content, suffix):
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"^metric.weights: got .*cannot be read: ") as caught:
        open_clip.check(file, "ViT-H-14", "metric.weights")
    assert "\n" not in str(caught.value)


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="cannot be read"):
        open_clip.check(tmp_path / "weights.pt", "ViT-H-14", "metric.weights")
    assert not (tmp_path / "ran").exists()


def test_a_file_without_tensors_is_reported(tmp_path):
    torch.save({"state_dict": {"a": 1}}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="expected a mapping of names to tensors"):
        open_clip.check(tmp_path / "weights.pt", "ViT-H-14", "metric.weights")


def test_the_file_of_a_folder_is_found_by_its_name(tmp_path):
    torch.save(build_checkpoint(), tmp_path / "open_clip_pytorch_model.bin")
    check_clip(str(tmp_path), "ViT-H-14", "metric.weights")
    with pytest.raises(UserError, match=r"expected a file, or a folder or a hub id .*HPS\.pt"):
        check_clip(str(tmp_path), "ViT-H-14", "metric.weights", ("HPS.pt",))


@pytest.mark.parametrize("weights", ["", "nowhere/at/all.pt"])
def test_missing_weights_are_reported(weights):
    with pytest.raises(UserError, match=rf"^metric.weights: got '{weights}'; expected a file"):
        check_clip(weights, "ViT-H-14", "metric.weights")


def test_an_unknown_architecture_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"^metric.architecture: got 'ViT-Z'; expected one of ViT-B-32, "):
        check_clip(str(tmp_path), "ViT-Z", "metric.weights")
