"""The three losses of NASA-T. B batch; latents [B, C, H, W]; every loss is a scalar in the inputs' dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor


def vsd_gradient(eps_teacher: Tensor, eps_lora: Tensor, sigma: Tensor) -> Tensor:
    """Eq. 6 of NASA: g = w(t) (eps_psi - eps_pi) with w(t) = sigma_t^2 (SwiftBrush), [B, C, H, W].

    It points from where the student's images are to where the teacher's are less: x0 moves by -g.
    """
    return sigma**2 * (eps_teacher - eps_lora)


def dmd_gradient(
    eps_teacher: Tensor, eps_lora: Tensor, x0: Tensor, vsd_eps: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Return eq. 6 with DMD's weight (arXiv 2311.18828, eq. 8).

    It is the difference of the two predicted images over the mean
    distance of x0 to the teacher's, for each image.
    """
    to_image = sigma / alpha  # of a difference in eps; x_t is the same for both
    distance = (to_image * (vsd_eps - eps_teacher)).abs().mean(dim=(1, 2, 3), keepdim=True)
    return to_image * (eps_teacher - eps_lora) / distance


def vsd_loss(x0: Tensor, gradient: Tensor) -> Tensor:
    """0.5 MSE(x0, stopgrad(x0 - g)): its derivative with respect to x0 is g / numel. `gradient` is detached."""
    target = (x0 - gradient).detach()
    return 0.5 * F.mse_loss(x0, target)


def clip_hinge(image_features_BD: Tensor, text_features_BD: Tensor, margin: float) -> Tensor:
    """SwiftBrush v2's clamped CLIP loss: mean over samples of max(0, tau - cos(image, text)).

    The hinge is taken per sample, before the mean; the gradient reaches the images.
    """
    cosine_B = F.cosine_similarity(image_features_BD, text_features_BD, dim=-1)
    return torch.relu(margin - cosine_B).mean()


def denoising_loss(output: Tensor, target: Tensor, alpha: Tensor) -> Tensor:
    """Return the LoRA teacher's loss: MSE weighted by alpha_t^2 (SwiftBrush), per sample, then the mean."""
    return (alpha**2 * (output - target) ** 2).mean()
