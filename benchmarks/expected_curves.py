"""The curves that the demo's training is expected to follow: bands over seeds, which runs are drawn against.

    python -m benchmarks.expected_curves --seeds 6        # about three minutes of one core per seed

It trains the recipe `shapes` once per seed, in one process without a cluster, and writes
pipeline/recipes/curves/shapes.json. A band holds the lowest, the median and the highest value over the seeds; those of
training also over the two logged steps before and after, because the loss of a single step is noisy. Finished seeds are
kept in --work.
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.toy_students import build_distiller, judge_held_out, measure_diversity
from datasets_prep.shapes.prompts import sample_prompts
from pipeline import models, recipe
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.expected_curves import Band, Curve, ExpectedCurves
from pipeline.recipe import RECIPES
from pipeline.storage import Folder
from pipeline.training.progress_reporter import LOG_EVERY_N_STEPS

RECIPE = "shapes"
TRAINING = (
    *("loss_student", "loss_lora_teacher", "loss_regression", "loss_clip"),
    *("vsd_gradient_rms", "image_variation", "gradient_norm_student", "gradient_norm_lora_teacher"),
)
JUDGED_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the steps, after which the moving average is judged
HELD_OUT, FIRST_SEED, WINDOW = 256, 4321, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="number of seeds (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/expected"), help="folder of the finished seeds")
    parser.add_argument("--out", type=Path, default=RECIPES / "curves" / f"{RECIPE}.json")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        runs = list(pool.map(load_or_run, range(options.seeds), [options.work] * options.seeds))
    bands = {name: build_band([run[name] for run in runs], WINDOW if name in TRAINING else 0) for name in runs[0]}
    command = f"python -m benchmarks.expected_curves --seeds {options.seeds}"
    curves = ExpectedCurves(seeds=options.seeds, command=command, bands=bands)
    Folder.from_uri(options.out.absolute().parent).write(options.out.name, (curves.model_dump_json() + "\n").encode())
    for name, band in bands.items():
        print(f"{name} at step {band.steps[-1]}: {band.low[-1]:.3g}, {band.median[-1]:.3g}, {band.high[-1]:.3g}")


def load_or_run(seed: int, work: Path) -> dict[str, Curve]:
    """Return one seed's curves, from its file if it was run before."""
    file = work / f"{seed}.json"
    if not file.exists():
        Folder.from_uri(work.absolute()).write_json(file.name, train(seed))
    curves: dict[str, Curve] = json.loads(file.read_text())
    return curves


def train(seed: int) -> Mapping[str, Curve]:
    """Train one student and return its curves by metric."""
    torch.set_num_threads(1)
    options = recipe.load(RECIPE, [f"seed={seed}", "train.num_workers=1"])
    steps, batch_size = options.train.steps, options.train.batch_size
    distiller, prompts = (
        build_distiller(options),
        list(sample_prompts(options.prompts.count, seed)),
    )
    denoiser = models.load_denoiser(distiller.model.folder)  # a copy that takes the moving average
    sampler, judge = Sampler(distiller.model, denoiser=denoiser), AttributeJudge.load()
    judged, curves = {round(share * steps) for share in JUDGED_SHARES}, {}
    for step in range(1, steps + 1):
        first = (step - 1) * batch_size
        metrics = distiller.step(step - 1, [prompts[i % len(prompts)] for i in range(first, first + batch_size)])
        if step % LOG_EVERY_N_STEPS == 0:
            for name in TRAINING:
                curves.setdefault(name, []).append((step, metrics[name]))
        if step in judged:
            denoiser.load_state_dict(distiller.ema, strict=False)
            for name, value in judge_student(sampler, judge, options.evaluation.diversity_seeds).items():
                curves.setdefault(name, []).append((step, value))
    return curves


def judge_student(sampler: Sampler, judge: AttributeJudge, diversity_seeds: int) -> dict[str, float]:
    """Return the accuracy on held-out prompts and the diversity, by the names that `evaluate` gives them."""
    correct = judge_held_out(sampler, judge, SamplingMethod(), HELD_OUT, FIRST_SEED)
    diversity = measure_diversity(sampler, judge, range(diversity_seeds))
    return {"clean_and_right": float(np.mean(correct))} | {f"diversity_{name}": v for name, v in diversity.items()}


def build_band(curves: Sequence[Curve], window: int) -> Band:
    """Return the band over the seeds' curves, and over `window` points before and after each."""
    steps = [step for step, _ in curves[0]]
    values = np.array([[value for _, value in curve] for curve in curves])  # [seeds, points]
    near = [values[:, max(0, at - window) : at + window + 1] for at in range(len(steps))]
    return Band(
        steps=tuple(steps),
        low=tuple(float(part.min()) for part in near),
        median=tuple(float(np.median(part)) for part in near),
        high=tuple(float(part.max()) for part in near),
    )


if __name__ == "__main__":
    main()
