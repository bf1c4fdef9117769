"""Guidance in output space: eqs. 4 and 5 of NASA (arXiv 2412.02687)."""

from torch import Tensor


def classifier_free_guidance(eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """Return eps^ = (1 - k) eps_uncond + k eps_cond.

    Eq. 4 if `eps_uncond` is from the null text, eq. 5 if it is from the negative prompt. k = 1 is no guidance; k < 1
    pulls towards `eps_uncond`. Half-precision inputs are combined in float32, since the VSD gradient is the small
    difference of two such sums.
    """
    if eps_cond.dtype.itemsize < 4:
        eps_uncond, eps_cond = eps_uncond.float(), eps_cond.float()
    return (1 - guidance_scale) * eps_uncond + guidance_scale * eps_cond
