"""The one-step student: one call of the denoiser at the timestep where it starts."""

from collections.abc import Callable

import torch
from torch import Tensor

from nasa.diffusion import Diffusion
from nasa.parameterization import alpha_sigma, to_x0
from nasa.prompt_embeds import PromptEmbeds
from nasa.rules import Scale

Student = Callable[..., Tensor]


def generate(
    student: Student,
    diffusion: Diffusion,
    noise: Tensor,
    prompt: PromptEmbeds,
    negative: PromptEmbeds | None = None,
    scale: Scale = 0.0,
) -> Tensor:
    """x0 = f_theta(z, y[, y-, alpha]) in one step, as a rule from t = T - 1; noise and x0 are latents [B, C, H, W].

    For an eps model this is (z - sigma_T eps_theta) / alpha_T. The gradient flows to the student.
    """
    start = diffusion.start_timestep % diffusion.steps
    timestep_B = torch.full((noise.shape[0],), start, device=noise.device)
    alpha, sigma = alpha_sigma(diffusion.alphas_cumprod, timestep_B)
    output = student(noise, timestep_B, prompt, negative, scale)
    return to_x0(output, noise, alpha, sigma, diffusion.prediction_type)


@torch.no_grad()
def generate_with_cfg(
    student: Student,
    diffusion: Diffusion,
    noise: Tensor,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    guidance_scale: float,
) -> Tensor:
    """Eq. 5 on the student's outputs, the comparison that one-step models do badly at.

    Linear in the output, so mixing x0 is mixing eps: the conversion is affine with weights that sum to one.
    """
    conditional = generate(student, diffusion, noise, prompt)
    unconditional = generate(student, diffusion, noise, negative.expand(len(prompt)))
    return (1 - guidance_scale) * unconditional + guidance_scale * conditional
