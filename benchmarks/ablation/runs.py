"""The runs of the paper's ablation on the Shapes toy dataset: where the negative prompt goes, with several seeds each.

Each run is one process without a cluster. The row of a finished run is written to a
file, so that an interrupted ablation resumes with the missing runs.
"""

import itertools
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from benchmarks.toy_students import NASA_I, build_distiller, judge_held_out, measure_diversity
from datasets_prep.shapes.prompts import sample_prompts
from pipeline import recipe
from pipeline.evaluation import exclusion
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.training.distiller import Distiller

SBV2 = {"negative_on_student": False, "negative_on_teacher": False, "negative_on_lora_teacher": False}
MEASURES = ("plain", "nasa_i", "removed", "kept")
BOUND = 2.0  # points: a contrast whose interval lies within it is called equal


@dataclass(frozen=True)
class Variant:
    """A row of Table 5: where the negative prompt goes in training; `changes` are made to the recipe's method."""

    name: str
    title: str
    changes: dict[str, Any]


NONE = Variant("none", "none (SBv2*)", SBV2)
TEACHER = Variant("teacher", "teacher", {**SBV2, "negative_on_teacher": True})
NASA_T = Variant("nasa-t", "student, teacher (NASA-T)", {})
ALL = Variant("all", "student, teacher, LoRA teacher", {"negative_on_lora_teacher": True})


@dataclass(frozen=True)
class Loop:
    """One training loop: the options that its runs share, and the variants that it is run with."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    lora_guidance: bool
    regression_weight: float = 0.0
    warm: bool = False

    def configure(self, base: Recipe, variant: Variant, steps: int) -> Recipe:
        """Return the recipe of a run; the CLIP loss's weight falls to 0 over its `steps`."""
        changes = {
            "method": replace(base.method, lora_guidance=self.lora_guidance, **variant.changes),
            "regression": base.regression.model_copy(update={"weight": self.regression_weight}),
            "train": base.train.model_copy(update={"steps": steps}),
        }
        return base.model_copy(update=changes)


LOOPS = (
    Loop("guided", "LoRA teacher guided by k", (NONE, TEACHER, NASA_T, ALL), lora_guidance=True),
    Loop("unguided", "LoRA teacher not guided", (NONE, TEACHER, NASA_T), lora_guidance=False),
    Loop("warm", "not guided, from SBv2*'s student", (NONE, NASA_T), lora_guidance=False, warm=True),
    Loop("regression", "not guided, with regression", (NONE, NASA_T), lora_guidance=False, regression_weight=0.3),
)
CONTRASTS = (  # the paper's: see docs/adr/0006
    ("NASA-T vs. SBv2*", NASA_T, NONE),
    ("teacher vs. none", TEACHER, NONE),
    ("NASA-T: with vs. without LoRA teacher", ALL, NASA_T),
)
RUNS = tuple((loop, variant) for loop in LOOPS for variant in loop.variants)


@dataclass(frozen=True)
class Plan:
    """The options that all runs of an ablation share."""

    base: Recipe
    warm_up_steps: int
    steps: int
    folder: str
    threads: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"recipe": recipe.dump(self.base), "warm_up_steps": self.warm_up_steps, "steps": self.steps}


def ablate(plan: Plan, seeds: Sequence[int], processes: int) -> list[dict[str, Any]]:
    """Run the missing runs and return one row per run; rows of finished runs are read from their files."""
    folder = Folder.from_uri(plan.folder)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        missing = [(*run, seed) for seed in seeds for run in RUNS if _read_row(plan, *run, seed) is None]
        for loop in {loop.name: loop for loop, *_ in missing if loop.warm}.values():
            pool.submit(warm_up, plan, loop).result()
        futures = {pool.submit(run, plan, *key): key for key in missing}
        for number, future in enumerate(as_completed(futures), 1):
            loop, variant, seed = futures[future]
            row = future.result()
            folder.write(_row_file(loop, variant, seed), (json.dumps(row) + "\n").encode())
            title = f"{loop.title}: {variant.title}, seed {seed}"
            print(f"{number}/{len(missing)}: {title}: {_mean_percent(row['plain']):.1f} %", flush=True)
    return [row for seed in seeds for run in RUNS if (row := _read_row(plan, *run, seed)) is not None]


def _row_file(loop: Loop, variant: Variant, seed: int) -> str:
    return f"rows/{loop.name}-{variant.name}-{seed}.json"


def _read_row(plan: Plan, loop: Loop, variant: Variant, seed: int) -> dict[str, Any] | None:
    folder, file = Folder.from_uri(plan.folder), _row_file(loop, variant, seed)
    row = json.loads(folder.read(file)) if folder.exists(file) else None
    return row if row and row["plan"] == plan.identity else None


def warm_up(plan: Plan, loop: Loop) -> None:
    """Train the student, by SBv2*, and the LoRA teacher that every run of the loop starts from."""
    folder = Path(plan.folder) / f"start-{loop.name}"
    if (folder / "plan.json").is_file() and json.loads((folder / "plan.json").read_text()) == plan.identity:
        return
    torch.set_num_threads(plan.threads)
    distiller = _train(loop.configure(plan.base, NONE, plan.warm_up_steps + plan.steps), plan.warm_up_steps, 0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(distiller.collect_student_weights(), folder / "student.safetensors")
    save_file(_lora_weights(distiller), folder / "lora_teacher.safetensors")
    (folder / "plan.json").write_text(json.dumps(plan.identity))


def run(plan: Plan, loop: Loop, variant: Variant, seed: int) -> dict[str, Any]:
    """Train a variant, judge it and return its row, with the CPU seconds that both took."""
    torch.set_num_threads(plan.threads)
    start = time.process_time()
    first = plan.warm_up_steps if loop.warm else 0
    options = loop.configure(plan.base.model_copy(update={"seed": seed}), variant, first + plan.steps)
    warm = Path(plan.folder) / f"start-{loop.name}" if loop.warm else None
    distiller = _train(options, plan.steps, first, warm)
    student = distiller.engines.student.module.model
    student.load_state_dict(distiller.ema, strict=False)
    row = {"loop": loop.name, "variant": variant.name, "seed": seed, "plan": plan.identity}
    row |= judge(options, Sampler(distiller.model, denoiser=student))
    return {**row, "cpu_seconds": time.process_time() - start}


def _train(options: Recipe, steps: int, first: int, warm: Path | None = None) -> Distiller:
    """Train from step `first` on, which sets the weight of the CLIP loss and the order of the prompts."""
    prompts = list(sample_prompts(options.prompts.count, options.seed))
    distiller = build_distiller(options)
    if warm is not None:
        distiller.engines.student.module.model.load_state_dict(load_file(warm / "student.safetensors"))
        distiller.engines.teachers.load_state_dict(load_file(warm / "lora_teacher.safetensors"), strict=False)
        distiller.ema = {name: value.clone() for name, value in distiller.collect_student_weights().items()}
    for step in range(first, first + steps):
        start = step * options.train.batch_size
        distiller.step(step, [prompts[i % len(prompts)] for i in range(start, start + options.train.batch_size)])
    return distiller


def _lora_weights(distiller: Distiller) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in distiller.engines.teachers.named_parameters() if "lora_" in n}


def judge(options: Recipe, sampler: Sampler) -> dict[str, Any]:
    """Return, by measure, a list of zeros and ones, and the diversity of each open attribute, in 0..1.

    `plain` and `nasa_i` tell for each held-out prompt whether its image is clean with every attribute right. `removed`
    and `kept` are the outcomes of the exclusion test, by seed.
    """
    evaluation, attributes = options.evaluation, AttributeJudge.load()
    row: dict[str, Any] = {
        name: judge_held_out(sampler, attributes, sampling, evaluation.num_prompts, evaluation.seed)
        for name, sampling in (("plain", SamplingMethod()), ("nasa_i", NASA_I))
    }
    first = evaluation.seed * 1000
    seeds = range(first, first + evaluation.exclusion_seeds)
    trials = exclusion.run_trials(sampler, attributes, [NASA_I], seeds, selects_scale=False)
    of_nasa = [trial for trial in trials if trial.sampling == NASA_I.label]
    row |= {name: [int(getattr(trial, name)) for trial in of_nasa] for name in ("removed", "kept")}
    return {**row, "diversity": measure_diversity(sampler, attributes)}


def _mean_percent(flags: Sequence[int]) -> float:
    return 100 * float(np.mean(flags))


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row per loop and variant, over the seeds that all runs have, and the contrasts between them."""
    by_run = {(row["loop"], row["variant"], row["seed"]): row for row in rows}
    seeds = [
        seed
        for seed in sorted({row["seed"] for row in rows})
        if all((loop.name, variant.name, seed) in by_run for loop, variant in RUNS)
    ]
    table = []
    for loop, variant in RUNS if seeds else ():
        group = [by_run[loop.name, variant.name, seed] for seed in seeds]
        shares = {name: _describe([_mean_percent(row[name]) for row in group]) for name in MEASURES}
        diversity = {name: _describe([row["diversity"][name] for row in group]) for name in group[0]["diversity"]}
        titles = {"loop": loop.title, "title": variant.title}
        table.append({**titles, **shares, "diversity": diversity})
    contrasts = [
        {"loop": loop.title, "title": title, "measure": measure, **compute_contrast(by_run, seeds, loop, a, b, measure)}
        for loop in LOOPS
        for title, a, b in CONTRASTS
        for measure in MEASURES
        if {a.name, b.name} <= {variant.name for variant in loop.variants} and len(seeds) > 1
    ]
    cpu_hours = sum(row["cpu_seconds"] for row in rows) / 3600
    return {"seeds": seeds, "cpu_hours": cpu_hours, "table": table, "contrasts": contrasts}


def _describe(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "seeds": [float(value) for value in values]}


def compute_contrast(
    by_run: dict[tuple[str, str, int], dict[str, Any]],
    seeds: Sequence[int],
    loop: Loop,
    a: Variant,
    b: Variant,
    measure: str,
) -> dict[str, Any]:
    """Return a - b in points: the mean over seeds and its 95 % t interval over them, with the difference of each.

    Both runs of a seed saw the same prompts and noise and are judged on the same images' prompts, so the seed is the
    unit: a seed's difference already holds the variation over its prompts.
    """

    def percents(variant: Variant) -> list[float]:
        return [_mean_percent(by_run[loop.name, variant.name, seed][measure]) for seed in seeds]

    differences = np.subtract(percents(a), percents(b))
    mean = float(differences.mean())
    half_width = _half_width(float(differences.std(ddof=1)), len(seeds))
    low, high = mean - half_width, mean + half_width
    verdict = "different" if low > 0 or high < 0 else "equal" if low > -BOUND and high < BOUND else "open"
    return {"difference": mean, "low": low, "high": high, "verdict": verdict, "seeds": differences.tolist()}


def count_needed_seeds(differences: Sequence[float]) -> int:
    """Return the number of seeds that would end a contrast, if it kept the mean and the spread of these differences.

    It ends if its t interval excludes 0 or lies within `BOUND` points of it.
    """
    mean, spread = abs(float(np.mean(differences))), float(np.std(differences, ddof=1))
    largest = max(mean, BOUND - mean)  # half the interval's width
    return next(seeds for seeds in itertools.count(2) if _half_width(spread, seeds) < largest)


def _half_width(spread: float, seeds: int) -> float:
    return float(stats.t.ppf(0.975, seeds - 1) * spread / np.sqrt(seeds))
