"""Guidance in output space: eqs. 4 and 5 of NASA (arXiv 2412.02687)."""

from torch import Tensor


def classifier_free_guidance(eps_away: Tensor, eps_towards: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """eps^ = (1 - k) eps_away + k eps_towards.

    Eq. 4 with `eps_away` from the null text, eq. 5 with it from the negative prompt. k = 1 is no
    guidance; k < 1 pulls towards `eps_away`. Half-precision inputs are combined in float32: the VSD gradient is a
    difference of two such sums, which are near each other.
    """
    if eps_towards.dtype.itemsize < 4:
        eps_away, eps_towards = eps_away.float(), eps_towards.float()
    return (1 - guidance_scale) * eps_away + guidance_scale * eps_towards
