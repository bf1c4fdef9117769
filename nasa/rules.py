"""Attention rules: how the negative prompt's cross-attention changes the positive prompt's.

A rule is a pure function of the two attention outputs and a scale. Both outputs are taken after the
heads are merged and before the output projection. B batch, L image tokens, D features.
"""

from collections.abc import Callable

from torch import Tensor

Scale = float | Tensor
Rule = Callable[[Tensor, Tensor, Scale], Tensor]


def nasa_rule(z_pos_BLD: Tensor, z_neg_BLD: Tensor, scale: Scale) -> Tensor:
    """Eq. 9 of NASA (arXiv 2412.02687): Z_NASA = Z+ - alpha Z-.

    No renormalisation, clamp or blend. `scale` is alpha, a number or a tensor that broadcasts to
    [B, 1, 1]. The gradient flows through both outputs.
    """
    return z_pos_BLD - scale * z_neg_BLD


RULES: dict[str, Rule] = {"nasa": nasa_rule}
