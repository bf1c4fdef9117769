"""Time and memory of one step against SwiftBrush's algorithm written plainly, interleaved, on one model.

    python -m benchmarks.distillation                      # the world of shapes, batch 16, on the CPU
    python -m benchmarks.distillation --check              # first, that both have the same losses for ten steps

The baseline is `swiftbrush.py`. Ratios are of images/s to its, the median over rounds, each in a new random order.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.ablation import runs
from benchmarks.swiftbrush import SwiftBrush
from nasa.denoiser import make_steerable
from nasa.distillation import StepRandomness, TextConditions, sample_step
from pipeline import models, recipe
from pipeline.training import distiller, engines
from pipeline.training.distiller import Distiller

WARM_UP = 2
SHARED = "method.lora_shares_pass=true"


class Baseline:
    """SwiftBrush's step on the texts and random numbers of `like`."""

    def __init__(self, options: recipe.Recipe, like: Distiller) -> None:
        self.like = like
        self.swiftbrush = SwiftBrush(
            like.engines.student.module,
            make_steerable(models.load_denoiser(like.model.folder).requires_grad_(False)),
            like.engines.teachers,
            like.model.diffusion,
            options.method,
            (options.student.learning_rate, options.lora_teacher.learning_rate),
            options.train.max_grad_norm,
        )
        like.engines, like.ema = None, {}  # its models are used, its optimizers and its moving average are not

    def step(self, step: int, prompts: list[str]) -> dict[str, float]:
        losses = self.swiftbrush.step(*numbers(self.like, step, prompts))
        return {name: float(value) for name, value in losses.items()}


def numbers(like: Distiller, step: int, prompts: list[str]) -> tuple[TextConditions, StepRandomness]:
    """The texts and the random numbers that `like` has at this step."""
    options, places = like.recipe, range(len(prompts))
    own = like.model.encode([*prompts, *like.negatives.sample(prompts, options.seed, step, places)])
    shared = torch.Generator().manual_seed(distiller.mix_seeds(options.seed, step))
    each = [torch.Generator().manual_seed(distiller.mix_seeds(options.seed, step, 1 + place)) for place in places]
    randomness = sample_step(options.method, like.model.diffusion, like.model.latent_shape, shared, each)
    return TextConditions(own[: len(prompts)], own[len(prompts) :], like.null), randomness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="compare the losses of ten steps instead")
    parser.add_argument("--rows", nargs="*", default=["plain", "shared", "compiled", "both", "bfloat16"])
    parser.add_argument("--compiler", default="inductor", help="torch.compile's backend; `eager` traces alone")
    parser.add_argument("--memory", help="print the peak memory of this row alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sets = ["train.num_workers=1", f"train.batch_size={arguments.batch}", "train.clip_weight=0"]
    options = recipe.load("shapes", sets)
    make: dict[str, Callable[[], Any]] = {
        "baseline": lambda: Baseline(options, runs.fresh(options)),
        "plain": lambda: runs.fresh(options),
        "bfloat16": lambda: runs.fresh(recipe.parse(recipe.dump(options), ['train.precision="bfloat16"'])),
        "shared": lambda: runs.fresh(recipe.parse(recipe.dump(options), [SHARED])),
        "both": lambda: compiled(recipe.parse(recipe.dump(options), [SHARED]), arguments.compiler),
        "compiled": lambda: compiled(options, arguments.compiler),
    }
    prompts = [f"a photo of a {colour} star" for colour in ("red", "blue", "green", "white")] * (arguments.batch // 4)
    if arguments.check:
        check(make, prompts)
    elif arguments.memory:
        memory(make[arguments.memory], prompts)
    else:
        compare({name: make[name]() for name in ("baseline", *arguments.rows)}, prompts, arguments.rounds)


def compiled(options: recipe.Recipe, backend: str) -> Distiller:
    made = runs.fresh(options)
    engines.compile_denoisers(made.engines.student.module, made.engines.teachers, backend)
    return made


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
    print("| step | images/s | ratio |\n|---|---|---|")
    for name, own in seconds.items():
        low, middle, high = np.percentile(base / np.array(own), (25, 50, 75))
        rate = len(prompts) / np.median(own)
        print(f"| {name} | {rate:.1f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
