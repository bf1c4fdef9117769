"""One step of NASA-T (section 5.3 of arXiv 2412.02687), and of SBv2*, its special case.

All randomness of a step is in `Draws`; the losses are deterministic functions of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasa.backbone import Diffusion
from nasa.losses import denoising_loss, vsd_gradient, vsd_loss
from nasa.method import Method
from nasa.parameterization import add_noise, alpha_sigma, target
from nasa.student import SteerableDenoiser, generate
from nasa.teachers import frozen_teacher, guided_eps

VSD_TIMESTEPS = (0.02, 0.98)  # share of T: [20, 980) of 1000


@dataclass(frozen=True)
class Texts:
    """Embeddings of a step's prompts and negatives, [B, T, D], and of the null text, [1, T, D]."""

    prompt_embeds: Tensor
    negative_embeds: Tensor
    null_embeds: Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step; `scale` (alpha), `guidance_scale` (k) and `null_text` are one for all ranks."""

    scale: float
    guidance_scale: float
    null_text: bool
    noise: Tensor
    vsd_timestep_B: Tensor
    vsd_eps: Tensor
    lora_timestep_B: Tensor
    lora_eps: Tensor


def draw(
    method: Method, diffusion: Diffusion, shape: tuple[int, ...], shared: torch.Generator, own: torch.Generator
) -> Draws:
    """`shared` is seeded by the step alone, `own` by the step and the rank; both on the CPU, so the same anywhere."""
    device = diffusion.alphas_cumprod.device
    uniform = torch.rand(3, generator=shared).tolist()
    low, high = (int(share * diffusion.steps) for share in VSD_TIMESTEPS)
    return Draws(
        scale=_between(method.scale_range, uniform[0]),
        guidance_scale=_between(method.guidance_range, uniform[1]),
        null_text=uniform[2] < method.null_text_probability,
        noise=torch.randn(shape, generator=own).to(device),
        vsd_timestep_B=torch.randint(low, high, shape[:1], generator=own).to(device),
        vsd_eps=torch.randn(shape, generator=own).to(device),
        lora_timestep_B=torch.randint(0, diffusion.steps, shape[:1], generator=own).to(device),
        lora_eps=torch.randn(shape, generator=own).to(device),
    )


def _between(limits: tuple[float, float], uniform: float) -> float:
    low, high = limits
    return low + (high - low) * uniform


@dataclass(frozen=True)
class StudentLoss:
    """`loss` carries the gradient to the student; `x0` is detached, for the LoRA teacher's update."""

    loss: Tensor
    x0: Tensor
    attached_x0: Tensor
    gradient_rms: Tensor


def student_loss(
    student: SteerableDenoiser, teachers: nn.Module, diffusion: Diffusion, method: Method, texts: Texts, draws: Draws
) -> StudentLoss:
    """Eq. 6 with the negative prompt where `method` puts it; the teachers are seen without gradient."""
    negative_embeds = texts.negative_embeds if method.negative_on_student else None
    x0 = generate(student, diffusion, draws.noise, texts.prompt_embeds, negative_embeds, draws.scale)
    gradient = _score_difference(teachers, diffusion, method, texts, draws, x0.detach())
    return StudentLoss(vsd_loss(x0, gradient), x0.detach(), x0, gradient.square().mean().sqrt())


@torch.no_grad()
def _score_difference(
    teachers: nn.Module, diffusion: Diffusion, method: Method, texts: Texts, draws: Draws, x0: Tensor
) -> Tensor:
    alpha, sigma = alpha_sigma(diffusion.alphas_cumprod, draws.vsd_timestep_B)
    x_t = add_noise(x0, draws.vsd_eps, alpha, sigma)

    def eps(away_embeds: Tensor) -> Tensor:
        k = draws.guidance_scale
        return guided_eps(teachers, diffusion, x_t, draws.vsd_timestep_B, texts.prompt_embeds, away_embeds, k)

    with frozen_teacher(teachers):
        eps_teacher = eps(texts.negative_embeds if method.negative_on_teacher else texts.null_embeds)
    eps_lora = eps(texts.negative_embeds if method.negative_on_lora_teacher else texts.null_embeds)
    return vsd_gradient(eps_teacher, eps_lora, sigma)


def lora_teacher_loss(teachers: nn.Module, diffusion: Diffusion, texts: Texts, draws: Draws, x0: Tensor) -> Tensor:
    """Denoising of the student's own images, detached; the whole batch at times with the null text, no guidance."""
    alpha, sigma = alpha_sigma(diffusion.alphas_cumprod, draws.lora_timestep_B)
    x_t = add_noise(x0, draws.lora_eps, alpha, sigma)
    embeds = texts.null_embeds.expand_as(texts.prompt_embeds) if draws.null_text else texts.prompt_embeds
    output = teachers(x_t, draws.lora_timestep_B, embeds)
    wanted = target(x0, draws.lora_eps, alpha, sigma, diffusion.prediction_type)
    return denoising_loss(output, wanted, alpha)
