"""Attention rules: how the negative prompt's cross-attention modifies the positive prompt's.

A rule is a pure function of the two attention outputs and a scale, before the output projection; it is differentiable
in both outputs. It is never called with a scale of 0, which is plain attention.
B batch, L image tokens, D features, H heads, K features of a head. `scale` is a number, or a tensor that broadcasts
against the outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Scale = float | Tensor
Combine = Callable[..., Tensor]


@dataclass(frozen=True)
class Rule:
    """An attention rule: `combine(z_pos, z_neg, scale)` on merged heads [B, L, D].

    If `per_head`, it is `combine(z_pos, z_neg, scale, share)` on [B, H, L, K], where `share` [B, H, L, 1] is the
    attention weight of the negative tokens in one softmax over both texts.
    """

    combine: Combine
    per_head: bool = False


def nasa_rule(z_pos_BLD: Tensor, z_neg_BLD: Tensor, scale: Scale) -> Tensor:
    """Return eq. 9 of NASA (arXiv 2412.02687), `Z+ - alpha Z-`, without renormalisation, clamp or blend."""
    return z_pos_BLD - scale * z_neg_BLD


def nag_rule(z_pos_BLD: Tensor, z_neg_BLD: Tensor, scale: Scale, *, tau: float = 2.5, blend: float = 0.375) -> Tensor:
    """Apply Normalized Attention Guidance (arXiv 2505.21179): extrapolate, bound each token's L1 norm, blend.

        Z~ = Z+ + phi (Z+ - Z-)
        R = |Z~|_1 / |Z+|_1
        out = a min(R, tau) / R Z~ + (1 - a) Z+

    phi is the `scale` (its authors' code calls phi + 1 `nag_scale`) and a the `blend`. The defaults are theirs for
    Stable Diffusion 1.5; SDXL takes a blend of 0.5, FLUX and SD3.5 0.25 and 0.125 with phi 4.
    """
    extrapolated = z_pos_BLD + scale * (z_pos_BLD - z_neg_BLD)
    ratio = extrapolated.abs().sum(-1, keepdim=True) / z_pos_BLD.abs().sum(-1, keepdim=True)
    bounded = extrapolated * (ratio.clamp(max=tau) / ratio)
    return blend * bounded + (1 - blend) * z_pos_BLD


def vsf_rule(z_pos_BHLK: Tensor, z_neg_BHLK: Tensor, scale: Scale, share_BHL1: Tensor) -> Tensor:
    """Return Value Sign Flip (arXiv 2508.10931), `softmax(Q [K+; K-]^T / sqrt d) [V+; -alpha V-]`.

    The softmax over both texts equals the two separate ones weighted by the share of each.
    """
    return (1 - share_BHL1) * z_pos_BHLK - scale * share_BHL1 * z_neg_BHLK


RULES: dict[str, Rule] = {"nasa": Rule(nasa_rule), "nag": Rule(nag_rule), "vsf": Rule(vsf_rule, per_head=True)}
"""The rules by the name that `steer` takes."""
