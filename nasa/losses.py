"""The losses of NASA-T. B batch; latents [B, C, H, W]; every loss is a scalar in the inputs' dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

PSEUDO_HUBER = 0.00054  # of pseudo-Huber's c, per square root of a dimension


def vsd_gradient(eps_teacher: Tensor, eps_lora: Tensor, sigma: Tensor) -> Tensor:
    """Return eq. 6 of NASA, `g = w(t) (eps_psi - eps_pi)` with `w(t) = sigma_t^2` (SwiftBrush), [B, C, H, W].

    Gradient descent moves x0 by -g, towards higher density under the teacher.
    """
    return sigma**2 * (eps_teacher - eps_lora)


def dmd_gradient(x0_teacher: Tensor, x0_lora: Tensor, x0: Tensor) -> Tensor:
    """Return eq. 6 with DMD's weight (arXiv 2311.18828, eq. 8), [B, C, H, W].

    It is the difference of the two predicted images divided, per image, by the mean distance of x0 to the teacher's.
    """
    distance = (x0 - x0_teacher).abs().flatten(1).mean(dim=1).reshape(-1, *[1] * (x0.ndim - 1))
    return (x0_lora - x0_teacher) / distance


def vsd_loss(x0: Tensor, gradient: Tensor, distance: str = "squared") -> Tensor:
    """Return the distance of x0 to `stopgrad(x0 - g)`.

    "squared" is `0.5 MSE`, whose derivative with respect to x0 is `g / numel`; that of "pseudo_huber" has the direction
    of g, and in each image the length 1 / (B sqrt(D)) unless g is tiny.
    """
    target = (x0 - gradient).detach()
    if distance == "squared":
        return 0.5 * F.mse_loss(x0, target)
    assert distance == "pseudo_huber"
    return pseudo_huber(x0, target)


def regression_loss(x0: Tensor, target: Tensor, distance: str = "squared") -> Tensor:
    """Return the distance of the student's images to the teacher's, both [B, C, H, W]: the MSE, or `pseudo_huber`.

    The squared distance is smallest at the mean of what the teacher makes of similar noise, which is blurred where the
    student cannot tell which of two images it is; the other is smallest at their median.
    """
    if distance == "squared":
        return F.mse_loss(x0, target)
    assert distance == "pseudo_huber"
    return pseudo_huber(x0, target)


def pseudo_huber(x: Tensor, target: Tensor) -> Tensor:
    """Return the mean over images of the pseudo-Huber distance (arXiv 2310.14189), divided by sqrt(D).

    It is `sqrt(|x - y|^2 + c^2) - c`, for D numbers in an image and `c = 0.00054 sqrt(D)`.
    """
    root_mean_square_B = (x - target).square().flatten(1).mean(dim=1).add(PSEUDO_HUBER**2).sqrt()
    return (root_mean_square_B - PSEUDO_HUBER).mean()


def clip_hinge(image_features_BD: Tensor, text_features_BD: Tensor, margin: float) -> Tensor:
    """Return SwiftBrush v2's clamped CLIP loss, the mean over samples of `max(0, tau - cos(image, text))`."""
    cosine_B = F.cosine_similarity(image_features_BD, text_features_BD, dim=-1)
    return torch.relu(margin - cosine_B).mean()


def denoising_loss(output: Tensor, target: Tensor, weight: Tensor | float) -> Tensor:
    """Return the LoRA teacher's loss: the mean over images of the weighted MSE; SwiftBrush's weight is alpha_t^2."""
    return (weight * (output - target) ** 2).mean()
