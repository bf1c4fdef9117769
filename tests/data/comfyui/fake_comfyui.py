"""A small fake of ComfyUI's hooks, for tests without it; `hook_contract.CONTRACT` holds it to the real ones."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, TEXT_WIDTH, HEADS = 8, 6, 2
SIGMA_MAX, SIGMA_AT_HALF = 14.6147, 1.61558


def optimized_attention(q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, **kwargs):
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(TEXT_WIDTH, WIDTH, bias=False)
        self.to_v = nn.Linear(TEXT_WIDTH, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))


class BasicTransformerBlock(nn.Module):
    """The order of ComfyUI's block: a replacement for (block, number, index), else for (block, number), else plain."""

    def __init__(self):
        super().__init__()
        self.attn2 = CrossAttention()
        self.n_heads = HEADS

    def forward(self, x, context, transformer_options):
        extra_options = {k: v for k, v in transformer_options.items() if k not in ("patches", "patches_replace")}
        extra_options |= {"n_heads": HEADS, "dim_head": WIDTH // HEADS, "attn_precision": None}
        replacements = transformer_options.get("patches_replace", {}).get("attn2", {})
        block = transformer_options["block"]
        key = (*block, transformer_options["block_index"])
        patch = replacements.get(key, replacements.get(block))
        q, k, v = self.attn2.to_q(x), self.attn2.to_k(context), self.attn2.to_v(context)
        z = patch(q, k, v, extra_options) if patch else optimized_attention(q, k, v, HEADS)
        return x + self.attn2.to_out(z)


class SpatialTransformer(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock() for _ in range(depth))

    def forward(self, x, context, options):
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, context, {**options, "block_index": index})
        return x


class UNetModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_blocks = nn.ModuleList(nn.ModuleList([nn.Identity(), SpatialTransformer(1)]) for _ in range(2))
        self.middle_block = nn.ModuleList([nn.Identity(), SpatialTransformer(2), nn.Identity()])
        self.output_blocks = nn.ModuleList([nn.ModuleList([nn.Identity(), SpatialTransformer(1)])])

    def forward(self, x, context, transformer_options):
        for number, block in enumerate(self.input_blocks):
            x = block[1](x, context, {**transformer_options, "block": ("input", number)})
        x = self.middle_block[1](x, context, {**transformer_options, "block": ("middle", 0)})
        return self.output_blocks[0][1](x, context, {**transformer_options, "block": ("output", 0)})


class ModelSampling:
    def percent_to_sigma(self, percent):
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else SIGMA_AT_HALF * (SIGMA_MAX / SIGMA_AT_HALF) ** (1 - 2 * percent)


class ModelPatcher:
    def __init__(self, unet=None):
        self.model = SimpleNamespace(diffusion_model=unet or UNetModel(), model_sampling=ModelSampling())
        self.model_options = {"transformer_options": {}}

    def clone(self):
        """Return a patcher of the same network, with a deep copy of the options."""
        clone = ModelPatcher(self.model.diffusion_model)
        clone.model_options = copy.deepcopy(self.model_options)
        return clone

    def get_model_object(self, name):
        return getattr(self.model, name)

    def set_model_attn2_replace(self, patch, block_name, number, transformer_index=None):
        key = (block_name, number) if transformer_index is None else (block_name, number, transformer_index)
        replacements = self.model_options["transformer_options"].setdefault("patches_replace", {})
        replacements.setdefault("attn2", {})[key] = patch

    def run(self, x, context, *, sigma=SIGMA_MAX, cond_or_uncond=(0,)):
        """Call the network as the sampler does: the parts of a batch lie one after another."""
        options = {**self.model_options["transformer_options"], "cond_or_uncond": list(cond_or_uncond)}
        options["sigmas"] = torch.full((len(x) // len(cond_or_uncond),), sigma)
        with torch.no_grad():
            return self.model.diffusion_model(x, context, options)


class CLIP:
    """Encodes a text as random numbers of its own seed."""

    def tokenize(self, text, return_word_ids=False, **kwargs):
        return {"l": [(text, 1.0)]}

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        (text, _), *_ = tokens["l"]
        generator = torch.Generator().manual_seed(sum(text.encode()))
        return torch.randn(1, 5, TEXT_WIDTH, generator=generator)


def install(monkeypatch):
    """Let `from comfy.ldm.modules.attention import optimized_attention` find the fake."""
    for name in ("comfy", "comfy.ldm", "comfy.ldm.modules", "comfy.ldm.modules.attention"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["comfy.ldm.modules.attention"].optimized_attention = optimized_attention
