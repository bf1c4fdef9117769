"""Checkpoints of Stable Diffusion 1.x, 2.x and XL in one file, with their original names, as ComfyUI loads them.

The names follow from diffusers' own reader of such files, which reads every checkpoint back before it is returned.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from pipeline.errors import invalid

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."  # of version 1 and of version 2
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
TEXT_MODEL = "text_model."
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_NAMES = single_file_utils.DIFFUSERS_TO_LDM_MAPPING
_UNET_NAMES = {**_NAMES["unet"]["layers"], **_NAMES["unet"]["addition_embed_type"]}
_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_QKV = re.compile(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def build_single_file(pipe: Any) -> dict[str, Tensor]:
    """Return all tensors of a pipeline by their original names; none is changed in value or dtype.

    Raises:
        UserError: The pipeline is of another family, or an architecture that the original names do not cover.
    """
    if type(pipe).__name__ not in PIPELINES:
        raise invalid("format", type(pipe).__name__, f"{' or '.join(PIPELINES)}, whose original names are known")
    parts = list_parts(pipe)
    checkpoint = _prefix(_rename_unet(parts["unet"], pipe.unet.config), UNET) | _prefix(_rename_vae(parts["vae"]), VAE)
    for part, prefix in _list_text_prefixes(pipe).items():
        rename = _rename_open_clip if prefix in (OPEN_CLIP, XL_OPEN_CLIP) else dict
        checkpoint |= _prefix(rename(parts[part]), prefix)
    _require_round_trip(pipe, parts, checkpoint)
    return checkpoint


def list_parts(pipe: Any) -> dict[str, dict[str, Tensor]]:
    """Return the state of each part of a pipeline, with a text encoder's names as they are in files."""
    parts = {name: dict(getattr(pipe, name).state_dict()) for name in ("unet", "vae")}
    for name in _list_text_prefixes(pipe):
        state = getattr(pipe, name).state_dict()
        parts[name] = {(key if _is_full_name(key) else TEXT_MODEL + key): value for key, value in state.items()}
    return parts


def read_single_file(checkpoint: Mapping[str, Tensor], pipe: Any) -> dict[str, dict[str, Tensor]]:
    """Return the state of each part as diffusers reads it from a checkpoint; `pipe` has the configurations."""
    content = dict(checkpoint)
    parts = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(content, pipe.unet.config),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(content, pipe.vae.config),
    }
    for name, prefix in _list_text_prefixes(pipe).items():
        if prefix in (OPEN_CLIP, XL_OPEN_CLIP):
            parts[name] = single_file_utils.convert_open_clip_checkpoint(getattr(pipe, name), content, prefix=prefix)
        else:
            parts[name] = single_file_utils.convert_ldm_clip_checkpoint(content)
    return parts


def _is_full_name(key: str) -> bool:
    return key.startswith((TEXT_MODEL, "text_projection"))


def _list_text_prefixes(pipe: Any) -> dict[str, str]:
    """Return the prefix of each text encoder; version 2 has OpenCLIP's, and linear projections in its UNet."""
    if hasattr(pipe, "text_encoder_2"):
        return {"text_encoder": XL_CLIP, "text_encoder_2": XL_OPEN_CLIP}
    return {"text_encoder": OPEN_CLIP if pipe.unet.config.use_linear_projection else CLIP}


def _prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _rename_unet(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    with_attention = {name.partition(".attentions.")[0] for name in tensors if ".attentions." in name}
    per_block = config.layers_per_block if isinstance(config.layers_per_block, int) else 0  # 0 fails the round trip
    return {_rename_unet_key(name, per_block, with_attention): value for name, value in tensors.items()}


def _rename_unet_key(name: str, per_block: int, with_attention: set[str]) -> str:
    if match := _UNET_BLOCK.fullmatch(name):
        side, block, kind, number, rest = match.groups()
        index = int(block) * (per_block + 1) + (per_block if kind.endswith("samplers") else int(number))
        place = f"input_blocks.{index + 1}" if side == "down" else f"output_blocks.{index}"
        if kind == "downsamplers":
            return f"{place}.0.{rest.replace('conv', 'op', 1)}"
        if kind == "upsamplers":
            return f"{place}.{2 if f'up_blocks.{block}' in with_attention else 1}.{rest}"
        return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_replace_first(rest, _RESNET)}"
    if match := _UNET_MIDDLE.fullmatch(name):
        kind, number, rest = match.groups()
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(number)}.{_replace_first(rest, _RESNET)}"
    return str(_UNET_NAMES.get(name, name))


def _replace_first(name: str, names: Mapping[str, str]) -> str:
    """Replace the layer at the beginning of a name."""
    layer = next((layer for layer in names if name.startswith(f"{layer}.")), None)
    return name if layer is None else names[layer] + name.removeprefix(layer)


def _rename_vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    blocks = 1 + max(int(match[2]) for name in tensors if (match := _VAE_BLOCK.fullmatch(name)))
    renamed = {_rename_vae_key(name, blocks): value for name, value in tensors.items()}
    is_projection = re.compile(r".+\.attn_1\.(?:q|k|v|proj_out)\.weight").fullmatch
    return {  # the original's are convolutions of one pixel
        name: value[:, :, None, None] if is_projection(name) and value.ndim == 2 else value
        for name, value in renamed.items()
    }


def _rename_vae_key(name: str, blocks: int) -> str:
    if match := _VAE_BLOCK.fullmatch(name):
        side, block, kind, number, rest = match.groups()
        place = f"encoder.down.{block}" if side == "encoder" else f"decoder.up.{blocks - 1 - int(block)}"
        if kind == "resnets":
            return f"{place}.block.{number}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{place}.{kind.removesuffix('rs')}.{rest}"
    if match := _VAE_MIDDLE.fullmatch(name):
        side, kind, number, rest = match.groups()
        if kind == "attentions":
            return f"{side}.mid.attn_1.{_replace_first(rest, _VAE_ATTENTION)}"
        return f"{side}.mid.block_{int(number) + 1}.{rest}"
    return str(_NAMES["vae"].get(name, name))


def _rename_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of OpenCLIP, which holds q, k and v in one matrix and the projection transposed."""
    renamed: dict[str, Tensor] = {}
    stacked: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if match := _QKV.fullmatch(name):
            stacked.setdefault((match[1], match[3]), {})[match[2]] = value
        else:
            key = _rename_open_clip_key(name)
            renamed[key] = value.T.contiguous() if key == "text_projection" else value
    for (layer, kind), values in stacked.items():
        key = f"{_rename_open_clip_key(layer + '.')}attn.in_proj_{kind}"
        renamed[key] = torch.cat([values[letter] for letter in "qkv"])
    return renamed


def _rename_open_clip_key(name: str) -> str:
    if name in _NAMES["openclip"]["layers"]:
        return str(_NAMES["openclip"]["layers"][name])
    for new, old in _NAMES["openclip"]["transformer"].items():
        name = name.replace(new, f"transformer.{old}" if old == "resblocks." else old)
    return name


def _require_round_trip(pipe: Any, parts: Mapping[str, Mapping[str, Tensor]], checkpoint: Mapping[str, Tensor]) -> None:
    """Raise a UserError unless diffusers reads back every tensor of every part, bit for bit."""
    for part, read in read_single_file(checkpoint, pipe).items():
        expected = parts[part]
        different = set(read) ^ set(expected) or {
            name for name, value in expected.items() if read[name] is None or not torch.equal(read[name], value)
        }
        if different:
            raise invalid(
                f"student/{part}", sorted(different)[0], "a layer that Stable Diffusion's original names cover"
            )
