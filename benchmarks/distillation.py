"""Time and memory of one training step, compared with SwiftBrush's algorithm on the same model.

    python -m benchmarks.distillation                      # the Shapes toy dataset, batch 16, on the CPU
    python -m benchmarks.distillation --check              # check first that both have the same losses for ten steps

The baseline is `swiftbrush.py`. Rounds interleave the rows in a new random order; ratios are of images/s to the
baseline's, as the median over rounds.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.swiftbrush import SwiftBrush
from benchmarks.toy_students import BASE, build_distiller
from nasa.distillation import StepRandomness, TextConditions, sample_step
from nasa.random_numbers import mix_seeds
from nasa.steerable_denoiser import make_steerable
from pipeline import models, recipe
from pipeline.training import engines
from pipeline.training.distiller import Distiller

WARM_UP = 2
SHARED = "method.lora_shares_pass=true"


class Baseline:
    """SwiftBrush's step on the texts and random numbers of a distiller."""

    def __init__(self, options: recipe.Recipe, distiller: Distiller) -> None:
        self.distiller = distiller
        self.swiftbrush = SwiftBrush(
            distiller.engines.student.module,
            make_steerable(models.load_denoiser(distiller.model.folder).requires_grad_(False)),
            distiller.engines.teachers,
            distiller.model.diffusion,
            options.method,
            (options.student.learning_rate, options.lora_teacher.learning_rate),
            options.train.max_grad_norm,
        )
        distiller.engines, distiller.ema = None, {}  # frees its optimizers and moving average; its models are used

    def step(self, step: int, prompts: list[str]) -> dict[str, float]:
        losses = self.swiftbrush.step(*sample_inputs(self.distiller, step, prompts))
        return {name: float(value) for name, value in losses.items()}


def sample_inputs(distiller: Distiller, step: int, prompts: list[str]) -> tuple[TextConditions, StepRandomness]:
    """Return the texts and the random numbers of a distiller's step."""
    options, model, indices = distiller.recipe, distiller.model, range(len(prompts))
    embeds = model.encode([*prompts, *distiller.negatives.sample(prompts, options.seed, step, indices)])
    shared = torch.Generator().manual_seed(mix_seeds(options.seed, step))
    by_image = [torch.Generator().manual_seed(mix_seeds(options.seed, step, 1 + index)) for index in indices]
    randomness = sample_step(options.method, model.diffusion, model.latent_shape, shared, by_image)
    return TextConditions(embeds[: len(prompts)], embeds[len(prompts) :], distiller.null), randomness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="only compare the losses of ten steps")
    parser.add_argument("--rows", nargs="*", default=["plain", "shared", "compiled", "both", "bfloat16"])
    parser.add_argument("--compiler", default="inductor", help="torch.compile's backend; `eager` only traces")
    parser.add_argument("--memory", metavar="ROW", help="only print the peak memory of this row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sets = ["train.num_workers=1", f"train.batch_size={arguments.batch}", "train.clip_weight=0"]
    sets += ["method.lora_guidance=true", "regression.weight=0"]  # as SwiftBrush
    options = recipe.load(BASE, sets)
    builders: dict[str, Callable[[], Any]] = {
        "baseline": lambda: Baseline(options, build_distiller(options)),
        "plain": lambda: build_distiller(options),
        "bfloat16": lambda: build_distiller(recipe.parse(recipe.dump(options), ['train.precision="bfloat16"'])),
        "shared": lambda: build_distiller(recipe.parse(recipe.dump(options), [SHARED])),
        "both": lambda: build_compiled(recipe.parse(recipe.dump(options), [SHARED]), arguments.compiler),
        "compiled": lambda: build_compiled(options, arguments.compiler),
    }
    prompts = [f"a photo of a {colour} star" for colour in ("red", "blue", "green", "white")] * (arguments.batch // 4)
    if arguments.check:
        check_losses(builders, prompts)
    elif arguments.memory:
        measure_memory(builders[arguments.memory], prompts)
    else:
        compare({name: builders[name]() for name in ("baseline", *arguments.rows)}, prompts, arguments.rounds)


def build_compiled(options: recipe.Recipe, backend: str) -> Distiller:
    distiller = build_distiller(options)
    engines.compile_denoisers(distiller.engines.student.module, distiller.engines.teachers, backend)
    return distiller


def check_losses(builders: dict[str, Callable[[], Any]], prompts: list[str]) -> None:
    plain, baseline = builders["plain"](), builders["baseline"]()
    worst = 0.0
    for step in range(10):
        a, b = plain.step(step, prompts), baseline.step(step, prompts)
        for name, value in b.items():
            worst = max(worst, abs(a[name] - value) / abs(value))
    print(f"largest relative difference of a loss in ten steps: {worst:.1e}")


def measure_memory(build: Callable[[], Any], prompts: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stepper = build()
    for step in range(3):
        stepper.step(step, prompts)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) / 1024:.0f} MiB of peak memory above the process before the models were loaded")


def compare(steppers: dict[str, Any], prompts: list[str], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(rounds + WARM_UP):
        for name in random.Random(number).sample(list(steppers), len(steppers)):
            started = time.perf_counter()
            steppers[name].step(number, prompts)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    base = np.array(seconds["baseline"])
    print("| step | images/s | ratio |\n|---|---|---|")
    for name, durations in seconds.items():
        low, median, high = np.percentile(base / np.array(durations), (25, 50, 75))
        rate = len(prompts) / np.median(durations)
        print(f"| {name} | {rate:.1f} | {median:.2f} ({low:.2f} to {high:.2f}) |")


if __name__ == "__main__":
    main()
