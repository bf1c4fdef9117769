"""Guidance in output space: eqs. 4 and 5 of NASA (arXiv 2412.02687)."""

from torch import Tensor


def classifier_free_guidance(eps_away: Tensor, eps_towards: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """eps^ = (1 - k) eps_away + k eps_towards.

    Eq. 4 with `eps_away` from the null text, eq. 5 with it from the negative prompt. k = 1 is no
    guidance; k < 1 pulls towards `eps_away`.
    """
    return (1 - guidance_scale) * eps_away + guidance_scale * eps_towards
