"""The runs of the paper's ablation on the Shapes toy dataset: where the negative prompt goes, with several seeds each.

Each run is one process without a cluster and starts from one shared student. The row of a finished run is written to a
file, so that an interrupted ablation resumes with the missing runs.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from datasets_prep import negative_corpus
from datasets_prep.shapes.prompts import BAD_PHOTO, sample_held_out_prompts, sample_negatives, sample_prompts
from datasets_prep.shapes.scene import ATTRIBUTES
from nasa.method_options import MethodOptions
from pipeline import models, recipe
from pipeline.evaluation import exclusion
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.teacher_pairs import read_pairs
from pipeline.recipe import Recipe
from pipeline.storage import Folder
from pipeline.training import engines
from pipeline.training.distiller import Distiller

SBV2 = {"negative_on_student": False, "negative_on_teacher": False, "negative_on_lora_teacher": False}
NASA_I = SamplingMethod("nasa", 0.5)
WARM_UP = "warm-up"


@dataclass(frozen=True)
class Variant:
    """One row of the table: `title` is its name there, `changes` are made to the recipe's method."""

    name: str
    title: str
    changes: dict[str, Any]

    def method(self, base: MethodOptions) -> MethodOptions:
        changes = dict(self.changes)
        if changes.pop("fixed_guidance", False):
            low, high = base.guidance_range
            changes["guidance_range"] = ((low + high) / 2,) * 2
        return replace(base, **changes)


VARIANTS = (
    Variant("none", "none (SBv2*)", SBV2),
    Variant("teacher", "teacher", {**SBV2, "negative_on_teacher": True}),
    Variant(
        "teachers", "teacher, LoRA teacher", {**SBV2, "negative_on_teacher": True, "negative_on_lora_teacher": True}
    ),
    Variant("nasa-t", "student, teacher (NASA-T)", {}),
    Variant("all", "student, teacher, LoRA teacher", {"negative_on_lora_teacher": True}),
    Variant("none-fixed-k", "none, fixed k", {**SBV2, "fixed_guidance": True}),
    Variant("nasa-t-fixed-k", "NASA-T, fixed k", {"fixed_guidance": True}),
    Variant("nasa-t-shared", "NASA-T, shared pass", {"lora_shares_pass": True}),
)
CONTRASTS = (  # fixed before the first run: see docs/adr/0006
    ("NASA-T vs. SBv2*", "nasa-t", "none"),
    ("teacher vs. none", "teacher", "none"),
    ("NASA-T: with vs. without LoRA teacher", "all", "nasa-t"),
    ("teacher: with vs. without LoRA teacher", "teachers", "teacher"),
    ("NASA-T: random vs. fixed k", "nasa-t", "nasa-t-fixed-k"),
    ("SBv2*: random vs. fixed k", "none", "none-fixed-k"),
    ("NASA-T: shared vs. separate pass", "nasa-t-shared", "nasa-t"),
)


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
        pool.submit(warm_up, plan).result()
        missing = [(variant, seed) for seed in seeds for variant in VARIANTS if _read_row(plan, variant, seed) is None]
        futures = {pool.submit(run, plan, variant, seed): (variant, seed) for variant, seed in missing}
        for number, future in enumerate(as_completed(futures), 1):
            variant, seed = futures[future]
            row = future.result()
            folder.write(_row_file(variant, seed), (json.dumps(row) + "\n").encode())
            print(
                f"{number}/{len(missing)}: {variant.title}, seed {seed}: {_mean_percent(row['plain']):.1f} %",
                flush=True,
            )
    return [row for seed in seeds for variant in VARIANTS if (row := _read_row(plan, variant, seed)) is not None]


def _row_file(variant: Variant, seed: int) -> str:
    return f"rows/{variant.name}-{seed}.json"


def _read_row(plan: Plan, variant: Variant, seed: int) -> dict[str, Any] | None:
    folder, file = Folder.from_uri(plan.folder), _row_file(variant, seed)
    row = json.loads(folder.read(file)) if folder.exists(file) else None
    return row if row and row["plan"] == plan.identity else None


def warm_up(plan: Plan) -> None:
    """Train the student, by SBv2*, and the LoRA teacher that every run starts from."""
    folder = Path(plan.folder) / WARM_UP
    if (folder / "plan.json").is_file() and json.loads((folder / "plan.json").read_text()) == plan.identity:
        return
    torch.set_num_threads(plan.threads)
    method = VARIANTS[0].method(plan.base.method)
    distiller = _train(plan.base.model_copy(update={"method": method}), plan.warm_up_steps, 0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(distiller.collect_student_weights(), folder / "student.safetensors")
    save_file(_lora_weights(distiller), folder / "lora_teacher.safetensors")
    (folder / "plan.json").write_text(json.dumps(plan.identity))


def run(plan: Plan, variant: Variant, seed: int) -> dict[str, Any]:
    """Train a variant from the warm start, judge it and return its row."""
    torch.set_num_threads(plan.threads)
    options = plan.base.model_copy(update={"seed": seed, "method": variant.method(plan.base.method)})
    distiller = _train(options, plan.steps, plan.warm_up_steps, Path(plan.folder) / WARM_UP)
    student = distiller.engines.student.module.model
    student.load_state_dict(distiller.ema, strict=False)
    sampler = Sampler(distiller.model, denoiser=student)
    return {"variant": variant.name, "seed": seed, "plan": plan.identity, **judge(options, sampler)}


def build_distiller(options: Recipe, device: str = "cpu", make: engines.MakeEngine = engines.PlainEngine) -> Distiller:
    """Return a distiller of the bundled teacher at its first step, in one process."""
    corpus = negative_corpus.build_weighted_corpus(sample_negatives(options.prompts.negative_draws, options.seed))
    sampler = NegativeSampler.from_table(corpus, avoid_contradictions=options.prompts.avoid_contradictions)
    model = models.load(models.find_teacher_folder(options.teacher), device)
    built = engines.build_engines(options, model, torch.device(device), make=make)
    clip = Clip.load(options.train.clip_model, device) if options.train.clip_weight else None
    pairs = read_pairs(options, options.regression.pairs if options.regression.weight else "")
    return Distiller(options, model, built, sampler, clip, pairs=pairs)


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
    """Return, by measure, a list of zeros and ones.

    `plain` and `nasa_i` tell for each held-out prompt whether its image is clean with every attribute right. `removed`
    and `kept` are the outcomes of the exclusion test, by seed.
    """
    evaluation, attributes = options.evaluation, AttributeJudge.load()
    row: dict[str, Any] = {
        name: judge_held_out(sampler, attributes, sampling, evaluation.num_prompts, evaluation.seed)
        for name, sampling in (("plain", SamplingMethod()), ("nasa_i", NASA_I))
    }
    first = evaluation.seed * 1000
    all_trials = exclusion.run_trials(
        sampler,
        attributes,
        [NASA_I],
        range(first, first + evaluation.exclusion_seeds),
        selects_scale=False,
    )
    trials = [trial for trial in all_trials if trial.sampling == NASA_I.label]
    return {**row, **{name: [int(getattr(trial, name)) for trial in trials] for name in ("removed", "kept")}}


def judge_held_out(
    sampler: Sampler, attributes: AttributeJudge, sampling: SamplingMethod, count: int, seed: int
) -> list[int]:
    """Return 1 for each held-out prompt whose image is clean with every attribute right, else 0."""
    texts, scenes = zip(*sample_held_out_prompts(count, seed), strict=True)
    images = sampler.sample(sampling, texts, range(seed, seed + count), [BAD_PHOTO] * count)
    return [
        int(shown["quality"] == "clean" and all(shown[key] == getattr(scene, key) for key in ATTRIBUTES))
        for shown, scene in zip(attributes.classify_attributes(images), scenes, strict=True)
    ]


def _mean_percent(flags: Sequence[int]) -> float:
    return 100 * float(np.mean(flags))


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row per complete variant, and the contrasts with their variation over seeds and over prompts."""
    seeds = sorted({row["seed"] for row in rows})
    by_run = {(row["variant"], row["seed"]): row for row in rows}
    complete = [variant for variant in VARIANTS if all((variant.name, seed) in by_run for seed in seeds)]
    table = []
    for variant in complete:
        shares_by_measure = {}
        for measure in ("plain", "nasa_i", "removed", "kept"):
            shares = [_mean_percent(by_run[variant.name, seed][measure]) for seed in seeds]
            shares_by_measure[measure] = {"mean": float(np.mean(shares)), "seeds": shares}
        table.append({"variant": variant.name, "title": variant.title, **shares_by_measure})
    known = {variant.name for variant in complete}
    contrasts = [
        {"title": title, "measure": measure, **compute_contrast(by_run, seeds, a, b, measure)}
        for title, a, b in CONTRASTS
        for measure in ("plain", "nasa_i")
        if {a, b} <= known
    ]
    return {"seeds": seeds, "table": table, "contrasts": contrasts}


def compute_contrast(
    by_run: dict[tuple[str, int], dict[str, Any]], seeds: Sequence[int], a: str, b: str, measure: str
) -> dict[str, Any]:
    """Return a - b in points: the mean, its 95 % bootstrap interval over prompts, and the difference of each seed."""
    difference = np.array(
        [np.subtract(by_run[a, seed][measure], by_run[b, seed][measure]) for seed in seeds], dtype=np.float64
    )
    per_prompt = 100 * difference.mean(axis=0)
    rng = np.random.default_rng(0)
    means = per_prompt[rng.integers(0, len(per_prompt), (2000, len(per_prompt)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {
        "difference": float(per_prompt.mean()),
        "low": float(low),
        "high": float(high),
        "seeds": (100 * difference.mean(axis=1)).tolist(),
    }
