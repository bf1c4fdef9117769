"""The student: one call of the denoiser, or a few."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nasa.attention_rules import Scale
from nasa.classifier_free_guidance import classifier_free_guidance
from nasa.diffusion_process import DiffusionProcess
from nasa.negative_keys import NegativeKeys
from nasa.parameterization import add_noise, to_eps, to_x0
from nasa.prompt_embeds import PromptEmbeds

Student = Callable[..., Tensor]


def generate(
    student: Student,
    diffusion: DiffusionProcess,
    noise: Tensor,
    prompt: PromptEmbeds,
    negative: PromptEmbeds | NegativeKeys | None = None,
    scale: Scale = 0.0,
    *,
    step_noise: Sequence[Tensor] = (),
    last_step: int = -1,
) -> Tensor:
    """Return x0 = f_theta(z, y[, y-, alpha]) of a student of one or a few steps; latents are [B, C, H, W].

    Each step predicts x0, and every step is steered alike. Between two steps, x0 is noised to the next timestep: with
    the next tensor of `step_noise` (DMD2, arXiv 2405.14867, section 4.4, and consistency models), or if there is none,
    as in flow matching, with the noise that the step predicted, which is a step of the ODE.
    The image is that of step `last_step`, differentiable in the student's weights; the steps before have no gradient.
    """
    timesteps = diffusion.student_timesteps[: last_step % diffusion.student_steps + 1]
    x_t = noise
    for number, timestep in enumerate(timesteps[:-1]):
        with torch.no_grad():
            x0, eps = _predict(student, diffusion, x_t, timestep, prompt, negative, scale)
        next_B = torch.full((len(noise),), timesteps[number + 1], device=noise.device)
        x_t = add_noise(x0, step_noise[number] if step_noise else eps, *diffusion.alpha_sigma(next_B, noise))
    return _predict(student, diffusion, x_t, timesteps[-1], prompt, negative, scale)[0]


def _predict(
    student: Student,
    diffusion: DiffusionProcess,
    x_t: Tensor,
    timestep: int,
    prompt: PromptEmbeds,
    negative: PromptEmbeds | NegativeKeys | None,
    scale: Scale,
) -> tuple[Tensor, Tensor]:
    """Return the student's x0 and eps; for an eps model x0 is (x_t - sigma_t eps_theta) / alpha_t."""
    timestep_B = torch.full((len(x_t),), timestep, device=x_t.device)
    output = student(x_t, diffusion.times[timestep_B], prompt, negative, scale)
    alpha, sigma = diffusion.alpha_sigma(timestep_B, x_t)
    x0, eps = (convert(output, x_t, alpha, sigma, diffusion.prediction_type) for convert in (to_x0, to_eps))
    return x0, eps


@torch.no_grad()
def generate_with_cfg(
    student: Student,
    diffusion: DiffusionProcess,
    noise: Tensor,
    prompt: PromptEmbeds,
    negative: PromptEmbeds,
    guidance_scale: float | Tensor,
    *,
    step_noise: Sequence[Tensor] = (),
) -> Tensor:
    """Return the student's x0 under eq. 5 in each step, a baseline that fails for one-step models."""
    others = negative.expand(len(prompt))

    def guided(latents: Tensor, time_B: Tensor, *_: Any) -> Tensor:
        conditional, unconditional = (student(latents, time_B, texts) for texts in (prompt, others))
        return classifier_free_guidance(unconditional, conditional, guidance_scale)

    return generate(guided, diffusion, noise, prompt, step_noise=step_noise)
