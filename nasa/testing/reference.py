"""Eqs. 7-9 written out in float64 with loops over images and heads, sharing no code with `nasa.attention`."""

import math

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


def reference_cross_attention(
    attn: Attention,
    hidden_BLD: Tensor,
    text_BTD: Tensor,
    negative_BTD: Tensor | None,
    scale_B: list[float],
    negative_mask_BT: Tensor | None = None,
) -> Tensor:
    """What a steered layer returns, float64 [B, L, D]; the attention's weights are read, not called."""
    images = []
    for b in range(hidden_BLD.shape[0]):
        z = _softmax_attention(attn, hidden_BLD[b], text_BTD[b], None)
        if negative_BTD is not None:
            mask = None if negative_mask_BT is None else negative_mask_BT[b]
            z = z - scale_B[b] * _softmax_attention(attn, hidden_BLD[b], negative_BTD[b], mask)
        out = attn.to_out[0]
        images.append(z @ out.weight.double().T + out.bias.double())
    return torch.stack(images)


def _softmax_attention(attn: Attention, hidden_LD: Tensor, text_TD: Tensor, mask_T: Tensor | None) -> Tensor:
    query = hidden_LD.double() @ attn.to_q.weight.double().T
    key = text_TD.double() @ attn.to_k.weight.double().T
    value = text_TD.double() @ attn.to_v.weight.double().T
    width = query.shape[-1] // attn.heads
    heads = []
    for h in range(attn.heads):
        part = slice(h * width, (h + 1) * width)
        logits = query[:, part] @ key[:, part].T / math.sqrt(width)
        if mask_T is not None:
            logits = logits.masked_fill(~mask_T.bool()[None], -math.inf)
        weights = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
        heads.append(weights / weights.sum(dim=-1, keepdim=True) @ value[:, part])
    return torch.cat(heads, dim=-1)
