"""Checkpoints in open_clip's layout, loaded into transformers' CLIPModel with the same outputs as open_clip's model.

open_clip holds queries, keys and values in one matrix, and its projections transposed. Sizes are read from the
tensors' shapes; ARCHITECTURES has what does not follow from them: the width of a head, and the activation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from pipeline.errors import invalid
from pipeline.models.clip.tokenizer import END, START
from pipeline.models.weight_files import read_tensors, require_layout

NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXT_HEAD = 64  # width of a head of the text tower, in all architectures


@dataclass(frozen=True)
class Architecture:
    """Properties that do not follow from the tensors' shapes."""

    vision_head: int  # width of a head of the image tower
    activation: str


ARCHITECTURES = {  # open_clip's names; OpenAI's weights use quickgelu
    "ViT-B-32": Architecture(64, "gelu"),
    "ViT-B-32-quickgelu": Architecture(64, "quick_gelu"),
    "ViT-L-14": Architecture(64, "gelu"),
    "ViT-L-14-quickgelu": Architecture(64, "quick_gelu"),
    "ViT-H-14": Architecture(80, "gelu"),
    "ViT-g-14": Architecture(88, "gelu"),
}

NOT_WEIGHTS = {
    "input_resolution",
    "context_length",
    "vocab_size",
}  # present in OpenAI's files; open_clip ignores them too
RENAMED = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
TRANSPOSED = {"text_projection", "visual.proj"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
RENAMED_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def check(file: Path, architecture: str, field: str) -> CLIPConfig:
    """Check names and shapes of a checkpoint of this layout and return its configuration.

    Raises:
        UserError: naming `field`, if the file is no such checkpoint.
    """
    config, _ = _read(file, architecture, field)
    return config


def load(file: Path, architecture: str, field: str, device: torch.device | str = "cpu") -> CLIPModel:
    """Load the model in float32, frozen."""
    config, weights = _read(file, architecture, field)
    model: CLIPModel = CLIPModel.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    return model.requires_grad_(False).eval().to(device)


def _read(file: Path, architecture: str, field: str) -> tuple[CLIPConfig, dict[str, Tensor]]:
    tensors = {name: value for name, value in read_tensors(file, field).items() if name not in NOT_WEIGHTS}
    try:
        config = infer_config(tensors, ARCHITECTURES[architecture])
    except KeyError as error:
        expected = f"a checkpoint in open_clip's layout (the file lacks {error.args[0]!r})"
        raise invalid(field, str(file), expected) from None
    except ValueError as error:
        raise invalid(field, str(file), f"a checkpoint of {architecture} ({error})") from None
    with torch.device("meta"):
        layout = CLIPModel(config).state_dict()
    weights = to_transformers(tensors)
    require_layout(weights, layout, file, field)
    return config, weights


def infer_config(tensors: Mapping[str, Tensor], architecture: Architecture) -> CLIPConfig:
    """Return transformers' configuration with sizes from the shapes of open_clip's tensors.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if a tower's width does not fit the architecture.
    """
    vision_width, _, patch, _ = tensors["visual.conv1.weight"].shape
    grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vocabulary, text_width = tensors["token_embedding.weight"].shape
    vision = _infer_tower_config(tensors, "visual.", vision_width, architecture.vision_head, architecture.activation)
    text = _infer_tower_config(tensors, "", text_width, TEXT_HEAD, architecture.activation)
    return CLIPConfig(
        vision_config={**vision, "image_size": grid * patch, "patch_size": patch},
        text_config={
            **text,
            "vocab_size": vocabulary,
            "max_position_embeddings": len(tensors["positional_embedding"]),
            "bos_token_id": START,
            "eos_token_id": END,
        },
        projection_dim=tensors["visual.proj"].shape[1],
    )


def _infer_tower_config(
    tensors: Mapping[str, Tensor], prefix: str, width: int, head: int, activation: str
) -> dict[str, Any]:
    if width % head:
        raise ValueError(f"the {'image' if prefix else 'text'} tower is {width} wide, not a multiple of {head}")
    blocks = [block for block in map(BLOCK.fullmatch, tensors) if block and (block[1] or "") == prefix]
    return {
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{prefix}transformer.resblocks.0.mlp.c_fc.bias"]),
        "num_hidden_layers": 1 + max(int(block[2]) for block in blocks),
        "num_attention_heads": width // head,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return open_clip's tensors under transformers' names; an unknown tensor keeps its name."""
    weights: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if block := BLOCK.fullmatch(name):
            weights |= _convert_block(value, *block.groups())
        else:
            weights[RENAMED.get(name, name)] = value.T.contiguous() if name in TRANSPOSED else value
    return weights


def _convert_block(value: Tensor, visual: str | None, layer: str, part: str, kind: str) -> dict[str, Tensor]:
    block = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}"
    if part == "attn.in_proj":
        return {f"{block}.self_attn.{one}_proj.{kind}": rows for one, rows in zip("qkv", value.chunk(3), strict=True)}
    return {f"{block}.{RENAMED_IN_BLOCK.get(part, part)}.{kind}": value}
