"""One step of NASA-T (section 5.3 of arXiv 2412.02687), and of SBv2*, its special case.

All randomness of a step is in `StepRandomness`; the losses are deterministic functions of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from nasa.classifier_free_guidance import classifier_free_guidance
from nasa.diffusion_process import DiffusionProcess
from nasa.losses import denoising_loss, dmd_gradient, vsd_gradient, vsd_loss
from nasa.method_options import MethodOptions
from nasa.parameterization import add_noise, prediction_target, to_eps, to_x0
from nasa.prompt_embeds import PromptEmbeds, where
from nasa.student import Student, generate
from nasa.teachers import guided_output, use_frozen_teacher, use_merged_teacher

VSD_TIMESTEPS = (0.02, 0.98)  # fractions of T: [20, 980) of 1000


@dataclass(frozen=True)
class TextConditions:
    """A step's B prompts and B negative prompts, and one null text."""

    prompts: PromptEmbeds
    negatives: PromptEmbeds
    null: PromptEmbeds


@dataclass(frozen=True)
class StepRandomness:
    """The random numbers of a step: numbers are shared by all images, tensors hold one row per image.

    `scale` is alpha, `guidance_scale` k, `last_step` the student's step whose image is trained; `step_noise` is the
    noise that the student adds between its steps, [B, num_step_noises, C, H, W]. `more_lora_timesteps` [B, U - 1] and
    `more_lora_eps` [B, U - 1, C, H, W] are those of the LoRA teacher's further updates. `cold_start` is the weight of
    the LoRA teacher's adapters in the frozen teacher.
    """

    scale: float
    guidance_scale: float
    last_step: int
    null_text_B: Tensor
    noise: Tensor
    vsd_timestep_B: Tensor
    vsd_eps: Tensor
    lora_timestep_B: Tensor
    lora_eps: Tensor
    step_noise: Tensor
    more_lora_timesteps: Tensor
    more_lora_eps: Tensor
    cold_start: float = 0.0

    def iter_lora_updates(self) -> "Iterator[StepRandomness]":
        """Yield the numbers of each of the LoRA teacher's updates."""
        yield self
        for timestep_B, eps in zip(self.more_lora_timesteps.unbind(1), self.more_lora_eps.unbind(1), strict=True):
            yield replace(self, lora_timestep_B=timestep_B, lora_eps=eps)

    def select_images(self, images: slice) -> "StepRandomness":
        """Return the numbers of some of the images."""
        tensors = {f.name: getattr(self, f.name)[images] for f in fields(self) if f.type is Tensor}
        return replace(self, **tensors)


def sample_step(
    method: MethodOptions,
    diffusion: DiffusionProcess,
    shape: tuple[int, ...],
    step_generator: torch.Generator,
    image_generators: Sequence[torch.Generator],
    *,
    progress: float = 0.0,
    cold_start: float = 0.0,
) -> StepRandomness:
    """Sample the random numbers of a step for images of latent `shape` [C, H, W].

    `progress` is the share of training before the step, and `cold_start` what is left of the cold start, in 0..1.

    `step_generator` is seeded by the step, each of `image_generators` by the step and an image's index in the global
    batch, so the numbers do not depend on the number of workers; they are sampled on the CPU, whatever the device.
    """
    device = diffusion.alphas.device
    uniform = torch.rand(3, generator=step_generator).tolist()
    null_text = uniform[2] < method.null_text_probability
    last_step = int(torch.randint(diffusion.student_steps, (), generator=step_generator))
    low, high = (int(share * diffusion.steps) for share in VSD_TIMESTEPS)
    low += int(cold_start * (high - 1 - low))
    images = []
    for generator in image_generators:
        noise = torch.randn(shape, generator=generator)
        vsd_timestep = torch.randint(low, high, (), generator=generator)
        vsd_eps = torch.randn(shape, generator=generator)
        lora_timestep = torch.randint(0, diffusion.steps, (), generator=generator)
        lora_eps = torch.randn(shape, generator=generator)
        if method.null_text_per == "image":
            null_text = torch.rand((), generator=generator).item() < method.null_text_probability
        step_noise = torch.randn((diffusion.num_step_noises, *shape), generator=generator)
        more = method.lora_updates - 1
        more_timesteps = torch.randint(0, diffusion.steps, (more,), generator=generator)
        more_eps = torch.randn((more, *shape), generator=generator)
        own = (torch.tensor(null_text), noise, vsd_timestep, vsd_eps, lora_timestep, lora_eps, step_noise)
        images.append((*own, more_timesteps, more_eps))
    names = [f.name for f in fields(StepRandomness) if f.type is Tensor]
    tensors = (torch.stack(column).to(device) for column in zip(*images, strict=True))
    return StepRandomness(
        scale=_interpolate(method.scale_range, uniform[0]),
        guidance_scale=_interpolate(method.get_guidance_range(progress), uniform[1]),
        last_step=last_step,
        cold_start=cold_start,
        **dict(zip(names, tensors, strict=True)),
    )


def _interpolate(limits: tuple[float, float], uniform: float) -> float:
    low, high = limits
    return low + (high - low) * uniform


@dataclass(frozen=True)
class StudentLoss:
    """The student's loss and images.

    `loss` has the student's gradient; `x0` is detached, for the LoRA teacher's update. `lora_loss` has the LoRA
    teacher's gradient if it shares the pass.
    """

    loss: Tensor
    x0: Tensor
    attached_x0: Tensor
    gradient_rms: Tensor
    lora_loss: Tensor | None = None


def generate_for_step(
    student: Student,
    diffusion: DiffusionProcess,
    method: MethodOptions,
    texts: TextConditions,
    randomness: StepRandomness,
) -> Tensor:
    """Return the student's images of a step, [B, C, H, W], steered by the negatives if the method says so."""
    negative = texts.negatives if method.negative_on_student else None
    return generate(
        student,
        diffusion,
        randomness.noise,
        texts.prompts,
        negative,
        randomness.scale,
        step_noise=randomness.step_noise.unbind(1),
        last_step=randomness.last_step,
    )


def student_loss(
    student: Student,
    teachers: nn.Module,
    diffusion: DiffusionProcess,
    method: MethodOptions,
    texts: TextConditions,
    randomness: StepRandomness,
    lora_teacher: Callable[..., Tensor] | None = None,
) -> StudentLoss:
    """Return the loss of eq. 6 with the negative prompt in the parts that `method` selects; teachers get no gradient.

    `lora_teacher` is the training engine of the LoRA teacher if that is not `teachers` itself.
    """
    x0 = generate_for_step(student, diffusion, method, texts, randomness)
    lora_call = teachers if lora_teacher is None else lora_teacher
    gradient, lora_loss = _score_difference(teachers, lora_call, diffusion, method, texts, randomness, x0.detach())
    loss = vsd_loss(x0, gradient, method.vsd_distance)
    return StudentLoss(loss, x0.detach(), x0, gradient.square().mean().sqrt(), lora_loss)


@torch.no_grad()
def _score_difference(
    teachers: nn.Module,
    lora_teacher: Callable[..., Tensor],
    diffusion: DiffusionProcess,
    method: MethodOptions,
    texts: TextConditions,
    randomness: StepRandomness,
    x0: Tensor,
) -> tuple[Tensor, Tensor | None]:
    timestep_B, prediction_type = randomness.vsd_timestep_B, diffusion.prediction_type
    alpha, sigma = diffusion.alpha_sigma(timestep_B, x0)
    x_t = add_noise(x0, randomness.vsd_eps, alpha, sigma)

    def guided(from_negative: bool) -> Tensor:
        unconditional = texts.negatives if from_negative else texts.null
        k = randomness.guidance_scale
        return guided_output(teachers, diffusion, x_t, timestep_B, texts.prompts, unconditional, k)

    with use_frozen_teacher(teachers, randomness.cold_start):
        teacher = guided(method.negative_on_teacher)
    lora_loss = None
    if method.lora_shares_pass:
        lora, lora_loss = _run_shared_pass(teachers, lora_teacher, diffusion, method, texts, randomness, x0, x_t)
    else:
        with use_merged_teacher(teachers):
            if method.lora_guidance:
                lora = guided(method.negative_on_lora_teacher)
            else:
                lora = teachers(x_t, diffusion.times[timestep_B], texts.prompts)
    if method.vsd_weighting == "dmd":
        x0_teacher, x0_lora = (to_x0(output, x_t, alpha, sigma, prediction_type) for output in (teacher, lora))
        return dmd_gradient(x0_teacher, x0_lora, x0), lora_loss
    eps_teacher, eps_lora = (to_eps(output, x_t, alpha, sigma, prediction_type) for output in (teacher, lora))
    return vsd_gradient(eps_teacher, eps_lora, sigma), lora_loss


def _run_shared_pass(
    teachers: nn.Module,
    lora_teacher: Callable[..., Tensor],
    diffusion: DiffusionProcess,
    method: MethodOptions,
    texts: TextConditions,
    randomness: StepRandomness,
    x0: Tensor,
    x_t: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the LoRA teacher's guided output and its loss; only the pass with the text it learns has a gradient."""
    timestep_B, null_B = randomness.vsd_timestep_B, randomness.null_text_B
    time_B = diffusion.times[timestep_B]
    alpha, sigma = diffusion.alpha_sigma(timestep_B, x0)
    with torch.enable_grad():
        output = lora_teacher(x_t, time_B, where(null_B, texts.null, texts.prompts))
        target = prediction_target(x0, randomness.vsd_eps, alpha, sigma, diffusion.prediction_type)
        loss = denoising_loss(output, target, _weigh_lora_loss(method, alpha))
    learned = output.detach()
    with use_merged_teacher(teachers):
        other = teachers(x_t, time_B, where(null_B, texts.prompts, texts.null))
    null = null_B.reshape(-1, *[1] * (x0.ndim - 1))
    uncond, cond = torch.where(null, learned, other), torch.where(null, other, learned)
    return classifier_free_guidance(uncond, cond, randomness.guidance_scale), loss


def lora_teacher_loss(
    teachers: nn.Module,
    diffusion: DiffusionProcess,
    method: MethodOptions,
    texts: TextConditions,
    randomness: StepRandomness,
    x0: Tensor,
) -> Tensor:
    """Return the denoising loss on the student's detached images, sometimes with the null text, without guidance."""
    alpha, sigma = diffusion.alpha_sigma(randomness.lora_timestep_B, x0)
    x_t = add_noise(x0, randomness.lora_eps, alpha, sigma)
    condition = where(randomness.null_text_B, texts.null, texts.prompts)
    output = teachers(x_t, diffusion.times[randomness.lora_timestep_B], condition)
    target = prediction_target(x0, randomness.lora_eps, alpha, sigma, diffusion.prediction_type)
    return denoising_loss(output, target, _weigh_lora_loss(method, alpha))


def _weigh_lora_loss(method: MethodOptions, alpha: Tensor) -> Tensor | float:
    return alpha**2 if method.lora_loss_weighting == "alpha_squared" else 1.0
