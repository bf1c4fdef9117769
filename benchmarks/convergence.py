"""How fast a one-step student of the bundled teacher converges, by option of the method, over paired seeds.

    python -m benchmarks.convergence --seconds 240 --seeds 6     # the levers below; finished runs are kept
    python -m benchmarks.convergence --seconds 30 --seeds 1 --lever lower-rate student.learning_rate=2e-4

A run trains on one thread and stops after these CPU seconds of training. On the way, the moving average is judged on
held-out prompts: the share of images that are clean with shape, colour and background right. At the end it measures
what NASA removes and keeps at scale 0.5, and the diversity: over 256 seeds of "a photo of a shape", the entropy of each
attribute that the prompt leaves open, divided by the logarithm of the number of its values (1: all equally frequent, 0:
always the same).
"""

import argparse
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.toy_students import BASE, NASA_I, build_distiller, judge_held_out, measure_diversity
from datasets_prep.shapes.prompts import sample_prompts
from pipeline import ROOT, models, recipe
from pipeline.evaluation import exclusion
from pipeline.evaluation.diversity import NUM_VALUES
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.storage import Folder

HUBER = ["regression.distance=pseudo_huber", "regression.weight=0.25"]
DMD = "method.vsd_weighting=dmd"
FALLING = ["student.lr_scheduler=linear", "train.steps=80"]  # about as many as a run of a minute has
HUBER_LEVERS = {
    "VSD and pseudo-Huber regression": HUBER,
    "pseudo-Huber regression, DMD's weighting": [*HUBER, DMD],
    "the demo's recipe: a falling learning rate too": [*HUBER, DMD, *FALLING],
}
LEVERS = {
    "VSD alone, both teachers guided": ["regression.weight=0", "method.lora_guidance=true"],
    "VSD alone": ["regression.weight=0"],
    "VSD and regression": ["regression.weight=0.3"],
}
Run = Callable[[str, list[str], int, float], dict[str, Any]]
HELD_OUT, FIRST_SEED = 192, 1234
EXCLUSION_SEEDS = range(5_000_000, 5_000_000 + 256)
JUDGE_SECONDS, JUDGE_GROWTH = 2.0, 1.25  # CPU seconds of training between two judgements, later a quarter more each
THRESHOLD = 0.7
DATA = ROOT / "docs/data/convergence.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU seconds of training per run (%(default)g)")
    parser.add_argument("--seeds", type=int, default=6, help="number of seeds (%(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="runs at once (%(default)s)")
    parser.add_argument(
        "--lever",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "OVERRIDE"),
        help="compare these recipe overrides",
    )
    parser.add_argument("--out", type=Path, default=DATA, help="file of the finished runs")
    parser.add_argument("--curves", action="store_true", help="print the accuracy on the way, and measure nothing else")
    options = parser.parse_args()
    levers = {name: overrides for name, *overrides in options.lever} or LEVERS | HUBER_LEVERS
    if options.curves:
        print(format_curves(compare(levers, options.seeds, options.seconds, options.out, options.processes, run_curve)))
        return
    print(format_table(compare(levers, options.seeds, options.seconds, options.out, options.processes)))


def compare(
    levers: Mapping[str, list[str]], seeds: int, seconds: float, out: Path, processes: int, run: Run | None = None
) -> list[dict[str, Any]]:
    """Train every lever with every seed, and return the rows; `out` keeps those of all finished runs.

    `run` returns the row of (lever, overrides, seed, CPU seconds); a function of a module, as processes call it.
    """
    folder = Folder.from_uri(out.absolute().parent)
    rows = folder.read_json(out.name) if folder.exists(out.name) else []
    runs = [(name, levers[name], seed, seconds) for seed in range(seeds) for name in levers]
    done = [(row["lever"], row["overrides"], row["seed"], row["seconds"]) for row in rows]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        missing = [key for key in runs if key not in done]
        for future in as_completed([pool.submit(run or run_lever, *key) for key in missing]):
            row = future.result()
            rows.append(row)
            folder.write_json(out.name, rows)
            print(f"{row['lever']}, seed {row['seed']}: {row['curve'][-1]['clean_and_right']:.2f}", flush=True)
    return [row for row in rows if (row["lever"], row["overrides"], row["seed"], row["seconds"]) in runs]


def run_lever(name: str, overrides: list[str], seed: int, seconds: float) -> dict[str, Any]:
    """Train one student and return its row; `curve` has the accuracy by CPU seconds and images."""
    judge = AttributeJudge.load()
    sampler, curve = train_student(overrides, seed, seconds, judge)
    trials = exclusion.run_trials(sampler, judge, [NASA_I], EXCLUSION_SEEDS)
    shares = exclusion.compute_method_shares([trial for trial in trials if trial.pair.trained], NASA_I)
    row = {"lever": name, "seed": seed, "seconds": seconds, "overrides": overrides, "curve": curve}
    return {**row, "removed": shares["removed"], "kept": shares["kept"], "diversity": measure_diversity(sampler, judge)}


def run_curve(name: str, overrides: list[str], seed: int, seconds: float) -> dict[str, Any]:
    """Train one student and return a row that has only its curve."""
    _, curve = train_student(overrides, seed, seconds, AttributeJudge.load())
    return {"lever": name, "seed": seed, "seconds": seconds, "overrides": overrides, "curve": curve}


def format_curves(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line per student: CPU seconds and the share clean and right."""
    curves = [
        (row, ", ".join(f"{p['seconds']:.0f} s {p['clean_and_right']:.2f}" for p in row["curve"])) for row in rows
    ]
    return "\n".join(f"{row['lever']}, seed {row['seed']}: {curve}" for row, curve in curves)


def train_student(
    overrides: list[str], seed: int, seconds: float, judge: AttributeJudge
) -> tuple[Sampler, list[dict[str, float]]]:
    """Train one student for these CPU seconds on one thread; return its moving average and the curve of accuracy."""
    torch.set_num_threads(1)
    options = recipe.load(BASE, [f"seed={seed}", "train.num_workers=1", *overrides])
    batch_size = options.train.batch_size
    distiller, prompts = build_distiller(options), list(sample_prompts(options.prompts.count, seed))
    denoiser = models.load_denoiser(distiller.model.folder)  # a copy that takes the moving average
    sampler = Sampler(distiller.model, denoiser=denoiser)
    used, next_judgement, step, curve = 0.0, JUDGE_SECONDS, 0, []
    while used < seconds:
        start = time.process_time()
        distiller.step(step, [prompts[i % len(prompts)] for i in range(step * batch_size, (step + 1) * batch_size)])
        used, step = used + time.process_time() - start, step + 1
        if used > next_judgement or used >= seconds:
            next_judgement = max(used + JUDGE_SECONDS, JUDGE_GROWTH * used)
            denoiser.load_state_dict(distiller.ema, strict=False)
            accuracy = float(np.mean(judge_held_out(sampler, judge, SamplingMethod(), HELD_OUT, FIRST_SEED)))
            curve.append({"seconds": used, "images": step * batch_size, "clean_and_right": accuracy})
    return sampler, curve


def find_seconds_to(curve: Sequence[dict[str, float]], threshold: float) -> float:
    """Return the CPU seconds at which the accuracy first reaches the threshold, interpolated; inf if it does not."""
    before = {"seconds": 0.0, "clean_and_right": 0.0}
    for point in curve:
        if point["clean_and_right"] >= threshold:
            share = (threshold - before["clean_and_right"]) / (point["clean_and_right"] - before["clean_and_right"])
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = point
    return math.inf


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with medians over seeds, and their range in brackets."""
    names = ", ".join(NUM_VALUES)
    header = f"| lever | seeds | s to {THRESHOLD:g} | clean and right | removed | kept | diversity: {names} |"
    lines = [header, "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row["lever"] for row in rows):
        group = [row for row in rows if row["lever"] == name]
        cells = [
            format_range([find_seconds_to(row["curve"], THRESHOLD) for row in group], "{:.0f}"),
            format_range([row["curve"][-1]["clean_and_right"] for row in group], "{:.2f}"),
            *(format_range([row[share] for row in group], "{:.3f}") for share in ("removed", "kept")),
            ", ".join(f"{np.median([row['diversity'][attribute] for row in group]):.2f}" for attribute in NUM_VALUES),
        ]
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_range(values: Sequence[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), np.median(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
