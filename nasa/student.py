"""The one-step student: a single call of the denoiser at its start timestep."""

from collections.abc import Callable

import torch
from torch import Tensor

from nasa.attention_rules import Scale
from nasa.diffusion_process import DiffusionProcess
from nasa.parameterization import alpha_sigma, to_x0
from nasa.prompt_embeds import PromptEmbeds

Student = Callable[..., Tensor]


def generate(
    student: Student,
    diffusion: DiffusionProcess,
    noise: Tensor,
    prompt: PromptEmbeds,
    negative: PromptEmbeds | None = None,
    scale: Scale = 0.0,
) -> Tensor:
    """Return x0 = f_theta(z, y[, y-, alpha]) in one step from the start timestep; latents are [B, C, H, W].

    For an eps model this is (z - sigma_T eps_theta) / alpha_T. Differentiable in the student's weights.
    """
    start = diffusion.start_timestep % diffusion.steps
    timestep_B = torch.full((noise.shape[0],), start, device=noise.device)
    alpha, sigma = alpha_sigma(diffusion.alphas_cumprod, timestep_B)
    output = student(noise, timestep_B, prompt, negative, scale)
    return to_x0(output, noise, alpha, sigma, diffusion.prediction_type)


@torch.no_grad()
def generate_with_cfg(
    student: Student,
    diffusion: DiffusionProcess,
    noise: Tensor,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    guidance_scale: float,
) -> Tensor:
    """Return the student's x0 under eq. 5, a baseline that fails for one-step models.

    Mixing x0 is equivalent to mixing eps, since the conversion is affine and the weights sum to one.
    """
    conditional = generate(student, diffusion, noise, prompt)
    unconditional = generate(student, diffusion, noise, negative.expand(len(prompt)))
    return (1 - guidance_scale) * unconditional + guidance_scale * conditional
