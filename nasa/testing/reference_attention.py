"""The attention rules in float64 with loops over images and heads, sharing no code with `nasa.attention`."""

import math

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


def reference_cross_attention(  # noqa: PLR0913
    attn: Attention,
    hidden_BLD: Tensor,
    text_BTD: Tensor,
    negative_BTD: Tensor | None,
    scale_B: list[float],
    negative_mask_BT: Tensor | None = None,
    *,
    method: str = "nasa",
    tau: float = 2.5,
    blend: float = 0.375,
) -> Tensor:
    """Return the output of a steered layer in float64, [B, L, D]; reads the layer's weights without calling it."""
    images = []
    for b in range(hidden_BLD.shape[0]):
        mask = None if negative_mask_BT is None else negative_mask_BT[b]
        if negative_BTD is None:
            z = _attend(attn, hidden_BLD[b], text_BTD[b], None)
        elif method == "vsf":
            z = _attend_sign_flipped(attn, hidden_BLD[b], text_BTD[b], negative_BTD[b], mask, scale_B[b])
        else:
            z_pos = _attend(attn, hidden_BLD[b], text_BTD[b], None)
            z_neg = _attend(attn, hidden_BLD[b], negative_BTD[b], mask)
            z = z_pos - scale_B[b] * z_neg if method == "nasa" else _apply_nag(z_pos, z_neg, scale_B[b], tau, blend)
        out = attn.to_out[0]
        images.append(z @ out.weight.double().T + out.bias.double())
    return torch.stack(images)


def _apply_nag(z_pos_LD: Tensor, z_neg_LD: Tensor, phi: float, tau: float, blend: float) -> Tensor:
    rows = []
    for positive, negative in zip(z_pos_LD, z_neg_LD, strict=True):
        guided = (1 + phi) * positive - phi * negative
        growth = guided.norm(p=1) / positive.norm(p=1)
        if growth > tau:
            guided = guided * tau / growth
        rows.append(blend * guided + (1 - blend) * positive)
    return torch.stack(rows)


def _attend(attn: Attention, hidden_LD: Tensor, text_TD: Tensor, mask_T: Tensor | None) -> Tensor:
    value = text_TD.double() @ attn.to_v.weight.double().T
    return _attend_values(attn, hidden_LD, text_TD, value, mask_T)


def _attend_sign_flipped(
    attn: Attention, hidden_LD: Tensor, text_TD: Tensor, negative_TD: Tensor, mask_T: Tensor | None, alpha: float
) -> Tensor:
    """Return attention with one softmax over both texts and the negative's values multiplied by -alpha."""
    both = torch.cat([text_TD, negative_TD])
    signs = torch.tensor([1.0] * len(text_TD) + [-alpha] * len(negative_TD)).double()
    value = signs[:, None] * (both.double() @ attn.to_v.weight.double().T)
    mask = None if mask_T is None else torch.cat([torch.ones(len(text_TD)), mask_T.float()])
    return _attend_values(attn, hidden_LD, both, value, mask)


def _attend_values(attn: Attention, hidden_LD: Tensor, text_TD: Tensor, value: Tensor, mask_T: Tensor | None) -> Tensor:
    query = hidden_LD.double() @ attn.to_q.weight.double().T
    key = text_TD.double() @ attn.to_k.weight.double().T
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
