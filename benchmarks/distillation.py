"""Time and memory of one step against SwiftBrush's algorithm written plainly, interleaved, on one model.

    python benchmarks/distillation.py                      # the world of shapes, batch 16, on the CPU
    python benchmarks/distillation.py --check              # first, that both have the same losses for ten steps

The baseline is the algorithm as its paper tells it: the frozen teacher and the LoRA teacher are two models, each is
called once for the prompt and once for what it is guided away from, and nothing is shared, fused or compiled.
Ratios are of images/s to the baseline's, the median over rounds, each in a new random order.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasa.distillation import Draws, Texts, draw
from nasa.embeds import Embeds
from nasa.teachers import lora_parameters
from pipeline import ablation, distiller, engines, models, recipe
from pipeline.distiller import Distiller

WARM_UP = 2
SHARED = "method.lora_shares_pass=true"


class Baseline:
    """SwiftBrush's step: variational score distillation with a LoRA teacher, one pass a teacher and a condition."""

    def __init__(self, options: recipe.Recipe, like: Distiller) -> None:
        self.options, self.like = options, like
        self.teacher = models.load_denoiser(like.model.folder).requires_grad_(False)
        self.student, self.lora_teacher = like.engines.student.module, like.engines.teachers
        self.optimizers = [
            torch.optim.AdamW(parameters, lr=rate, **engines.ADAM)
            for parameters, rate in (
                (self.student.parameters(), options.student.learning_rate),
                (lora_parameters(self.lora_teacher), options.lora_teacher.learning_rate),
            )
        ]
        like.engines, like.ema = None, {}  # its models are used, its optimizers and its moving average are not
        self.abar = like.model.diffusion.alphas_cumprod

    def step(self, step: int, prompts: list[str]) -> dict[str, float]:
        texts, draws = numbers(self.like, step, prompts)
        x0 = self._generate(texts, draws)
        loss = 0.5 * F.mse_loss(x0, (x0 - self._gradient(texts, draws, x0.detach())).detach())
        self._update(0, loss, self.student)
        lora_loss = self._lora_loss(texts, draws, x0.detach())
        self._update(1, lora_loss, self.lora_teacher)
        return {"loss_student": float(loss), "loss_lora_teacher": float(lora_loss)}

    def _alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.abar[t].sqrt()[:, None, None, None], (1 - self.abar[t]).sqrt()[:, None, None, None]

    def _generate(self, texts: Texts, draws: Draws) -> Tensor:
        t = torch.full((len(draws.noise),), len(self.abar) - 1)
        alpha, sigma = self._alpha_sigma(t)
        away = texts.negatives if self.options.method.negative_on_student else None
        return alpha * draws.noise - sigma * self.student(draws.noise, t, texts.prompts, away, draws.scale)

    @torch.no_grad()
    def _gradient(self, texts: Texts, draws: Draws, x0: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(draws.vsd_timestep_B)
        x_t = alpha * x0 + sigma * draws.vsd_eps

        def eps(model: Callable[..., Tensor], text: Embeds) -> Tensor:
            return alpha * model(text.expand(len(x_t))) + sigma * x_t

        def frozen(text: Embeds) -> Tensor:
            return self.teacher(x_t, draws.vsd_timestep_B, text.states).sample

        def adapted(text: Embeds) -> Tensor:
            return self.lora_teacher(x_t, draws.vsd_timestep_B, text)

        k, method = draws.guidance_scale, self.options.method
        away = texts.negatives if method.negative_on_teacher else texts.null
        psi = (1 - k) * eps(frozen, away) + k * eps(frozen, texts.prompts)
        away = texts.negatives if method.negative_on_lora_teacher else texts.null
        pi = (1 - k) * eps(adapted, away) + k * eps(adapted, texts.prompts)
        return sigma**2 * (psi - pi)

    def _lora_loss(self, texts: Texts, draws: Draws, x0: Tensor) -> Tensor:
        alpha, sigma = self._alpha_sigma(draws.lora_timestep_B)
        text = texts.null.expand(len(x0)) if draws.null_text_B[0] else texts.prompts
        output = self.lora_teacher(alpha * x0 + sigma * draws.lora_eps, draws.lora_timestep_B, text)
        return (alpha**2 * (output - (alpha * draws.lora_eps - sigma * x0)) ** 2).mean()

    def _update(self, which: int, loss: Tensor, model: nn.Module) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], self.options.train.gradient_clip)
        self.optimizers[which].step()


def numbers(like: Distiller, step: int, prompts: list[str]) -> tuple[Texts, Draws]:
    """The texts and the random numbers that `like` has at this step."""
    options, places = like.recipe, range(len(prompts))
    own = like.model.encode([*prompts, *like.negatives.draw(prompts, options.seed, step, places)])
    shared = torch.Generator().manual_seed(distiller.mix(options.seed, step))
    each = [torch.Generator().manual_seed(distiller.mix(options.seed, step, 1 + place)) for place in places]
    draws = draw(options.method, like.model.diffusion, like.model.latent_shape, shared, each)
    return Texts(own[: len(prompts)], own[len(prompts) :], like.null), draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="compare the losses of ten steps instead")
    parser.add_argument("--rows", nargs="*", default=["plain", "shared", "compiled", "both", "bfloat16"])
    parser.add_argument("--memory", help="print the peak memory of this row alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sets = ["train.workers=1", f"train.batch_size={arguments.batch}", "train.clip_weight=0"]
    options = recipe.load("shapes", sets)
    make: dict[str, Callable[[], Any]] = {
        "baseline": lambda: Baseline(options, ablation.fresh(options)),
        "plain": lambda: ablation.fresh(options),
        "bfloat16": lambda: ablation.fresh(recipe.parse(recipe.dump(options), ['train.precision="bfloat16"'])),
        "shared": lambda: ablation.fresh(recipe.parse(recipe.dump(options), [SHARED])),
        "both": lambda: ablation.fresh(recipe.parse(recipe.dump(options), [SHARED, "train.compile=true"])),
        "compiled": lambda: ablation.fresh(recipe.parse(recipe.dump(options), ["train.compile=true"])),
    }
    prompts = [f"a photo of a {colour} star" for colour in ("red", "blue", "green", "white")] * (arguments.batch // 4)
    if arguments.check:
        check(make, prompts)
    elif arguments.memory:
        memory(make[arguments.memory], prompts)
    else:
        compare({name: make[name]() for name in ("baseline", *arguments.rows)}, prompts, arguments.rounds)


def check(make: dict[str, Callable[[], Any]], prompts: list[str]) -> None:
    plain, baseline = make["plain"](), make["baseline"]()
    worst = 0.0
    for step in range(10):
        a, b = plain.step(step, prompts), baseline.step(step, prompts)
        for name, value in b.items():
            worst = max(worst, abs(a[name] - value) / abs(value))
    print(f"largest relative difference of a loss in ten steps: {worst:.1e}")


def memory(make: Callable[[], Any], prompts: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = make()
    for step in range(3):
        made.step(step, prompts)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) / 1024:.0f} MiB more at the peak than before the models were loaded")


def compare(made: dict[str, Any], prompts: list[str], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + WARM_UP):
        for name in random.Random(number).sample(list(made), len(made)):
            started = time.perf_counter()
            made[name].step(number, prompts)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    base = np.array(seconds["baseline"])
    for name, own in seconds.items():
        low, middle, high = np.percentile(base / np.array(own), (25, 50, 75))
        rate = len(prompts) / np.median(own)
        print(f"{name:<10}{rate:>8.1f} images/s   {middle:.2f} x ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
