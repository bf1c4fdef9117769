"""The time of a distillation step of each family, against the naive loop, at small width on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.family_steps

The naive loop keeps two teachers, the frozen one and another with adapters, and calls them once for each condition;
our loop keeps one and batches the conditions. Both compute the same losses on the same random numbers, which is
checked first. Their steps alternate; the ratio is the median over pairs of steps.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from nasa.classifier_free_guidance import classifier_free_guidance
from nasa.diffusion_process import read_diffusion
from nasa.distillation import StepRandomness, TextConditions, lora_teacher_loss, sample_step, student_loss
from nasa.families import find_family
from nasa.lora import add_lora, get_lora_parameters
from nasa.losses import denoising_loss, vsd_gradient, vsd_loss
from nasa.method_options import MethodOptions
from nasa.parameterization import add_noise, prediction_target, to_eps
from nasa.prompt_embeds import PromptEmbeds, where
from nasa.steerable_denoiser import make_steerable, require_distillation
from nasa.student import generate
from nasa.testing import TINY_PIPELINES

FAMILIES = ("stable-diffusion", "sdxl", "pixart", "sana", "stable-diffusion-3", "flux", "flux2-klein")
FAMILIES += ("qwen-image", "z-image", "wan")
BATCH, LATENT_SIDE = 4, 16
METHOD = MethodOptions(lora_guidance=True)
TOLERANCE = 1e-3


class Setting:
    """A family's student and teachers, at small width."""

    def __init__(self, name: str) -> None:
        pipe = TINY_PIPELINES[name]()
        self.family, denoiser = find_family(pipe)
        distillation = require_distillation(self.family)
        shape = distillation.latent_shape(denoiser.config, LATENT_SIDE)
        self.diffusion = read_diffusion(pipe.scheduler, flow_shift=3.0)
        prompts = [f"a photo of thing {number}" for number in range(BATCH)]
        with torch.no_grad():
            encoded = [self.family.encode(pipe, texts, None) for texts in (prompts, ["blurry"] * BATCH, [""])]
        self.texts = TextConditions(*encoded)
        self.student = make_steerable(deepcopy(denoiser).requires_grad_(True), family=self.family)
        self.frozen = make_steerable(deepcopy(denoiser).requires_grad_(False), family=self.family)
        add_lora(denoiser, rank=4, lora_alpha=8, target_modules=["to_q", "to_v"])
        torch.manual_seed(0)
        for parameter in get_lora_parameters(denoiser):
            parameter.data.normal_(std=0.1)
        self.teachers = make_steerable(denoiser, family=self.family)
        generators = [torch.Generator().manual_seed(index) for index in range(BATCH)]
        self.randomness = sample_step(METHOD, self.diffusion, shape, torch.Generator().manual_seed(0), generators)

    def clear_gradients(self) -> None:
        for model in (self.student, self.teachers):
            model.zero_grad(set_to_none=True)

    def run_ours(self) -> tuple[float, float]:
        student = student_loss(self.student, self.teachers, self.diffusion, METHOD, self.texts, self.randomness)
        student.loss.backward()
        lora = lora_teacher_loss(self.teachers, self.diffusion, METHOD, self.texts, self.randomness, student.x0)
        lora.backward()
        return student.loss.item(), lora.item()

    def run_naive(self) -> tuple[float, float]:
        r, diffusion, texts = self.randomness, self.diffusion, self.texts
        x0 = generate(self.student, diffusion, r.noise, texts.prompts, texts.negatives, r.scale)
        alpha, sigma = diffusion.alpha_sigma(r.vsd_timestep_B, x0)
        x_t = add_noise(x0.detach(), r.vsd_eps, alpha, sigma)
        with torch.no_grad():
            null = texts.null.expand(BATCH)
            teacher = self._guide(self.frozen, x_t, r, texts.negatives)
            lora = self._guide(self.teachers, x_t, r, null)
            eps = [to_eps(output, x_t, alpha, sigma, diffusion.prediction_type) for output in (teacher, lora)]
        loss = vsd_loss(x0, vsd_gradient(eps[0], eps[1], sigma))
        loss.backward()
        lora_loss = self._compute_lora_loss(x0.detach(), r)
        lora_loss.backward()
        return loss.item(), lora_loss.item()

    def _guide(
        self, model: Callable[..., Tensor], x_t: Tensor, r: StepRandomness, unconditional: PromptEmbeds
    ) -> Tensor:
        time_B = self.diffusion.times[r.vsd_timestep_B]
        uncond, cond = (model(x_t, time_B, text) for text in (unconditional, self.texts.prompts))
        return classifier_free_guidance(uncond, cond, r.guidance_scale)

    def _compute_lora_loss(self, x0: Tensor, r: StepRandomness) -> Tensor:
        alpha, sigma = self.diffusion.alpha_sigma(r.lora_timestep_B, x0)
        x_t = add_noise(x0, r.lora_eps, alpha, sigma)
        text = where(r.null_text_B, self.texts.null, self.texts.prompts)
        output = self.teachers(x_t, self.diffusion.times[r.lora_timestep_B], text)
        target = prediction_target(x0, r.lora_eps, alpha, sigma, self.diffusion.prediction_type)
        return denoising_loss(output, target, alpha**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="pairs of steps (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| family | naive, ms | ours, ms | ratio (range of the middle half) |\n|---|---|---|---|")
    for name in FAMILIES:
        print(measure(name, options.steps), flush=True)


def measure(name: str, steps: int) -> str:
    """Return the table's row of a family."""
    setting = Setting(name)
    ours, naive = setting.run_ours(), setting.run_naive()
    assert np.allclose(ours, naive, rtol=TOLERANCE), f"{name}: {ours} and {naive}"
    seconds: dict[str, list[float]] = {"naive": [], "ours": []}
    for _ in range(steps):
        for label, run in (("naive", setting.run_naive), ("ours", setting.run_ours)):
            setting.clear_gradients()
            start = time.process_time()
            run()
            seconds[label].append(time.process_time() - start)
    ratios = np.divide(seconds["naive"], seconds["ours"])
    middle = "{:.2f} to {:.2f}".format(*np.percentile(ratios, (25, 75)))
    naive_ms, ours_ms = (1e3 * float(np.median(seconds[label])) for label in ("naive", "ours"))
    return f"| {name} | {naive_ms:.0f} | {ours_ms:.0f} | {np.median(ratios):.2f} ({middle}) |"


if __name__ == "__main__":
    main()
