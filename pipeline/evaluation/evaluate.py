"""Evaluation: fixed prompts and seeds through the student and its teacher, judged, tabled and drawn."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets_prep.shapes import Scene
from datasets_prep.shapes.prompts import BAD_PHOTO, DEGRADATIONS, PAIRS, held_out_prompts
from pipeline import manifest, models, tracking
from pipeline.errors import UserError
from pipeline.evaluation import exclusion
from pipeline.evaluation.judges import AttributeJudge, Clip
from pipeline.evaluation.report import write_report
from pipeline.evaluation.sampling import Sampler, Way
from pipeline.evaluation.sheet import contact_sheet, to_pixels
from pipeline.evaluation.statistics import paired_bootstrap, share
from pipeline.recipe import EMBEDDED, Evaluation, Recipe, dump, parse
from pipeline.storage import Folder

JUDGED = ("shape", "colour", "background")
SHEET_COLUMNS, SHEET_SEEDS = 10, 96


def evaluate(
    student_folder: Folder, prompt_folder: Folder, folder: Folder, tracking_uri: str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `scores.parquet`, `summary.json`, `contact_sheet.png`, `report.html` and the manifest.

    `overrides` are of the recipe's `evaluation` section. The same evaluation of the same student is left as it is.
    """
    record = manifest.read(student_folder, "distill")
    recipe = _recipe(record["recipe"], overrides)
    made_from = {"recipe": dump(recipe), "student_sha256": record["student_sha256"]}
    if folder.has(manifest.NAME) and manifest.read(folder, "evaluate").items() >= made_from.items():
        return dict(json.loads(folder.read("summary.json")))
    student = distilled_student(student_folder)
    if recipe.teacher == EMBEDDED:
        summary, rows, sheet_rows, captions = _embedded(recipe.evaluation, student, Sampler(student.model))
    else:
        summary, rows, sheet_rows, captions = _pictures(recipe, student, prompt_folder)
    sheet = contact_sheet(sheet_rows, captions)
    _write(folder, summary, rows, sheet, sheet_rows, captions, recipe)
    tracker = tracking.Tracker(tracking_uri, record["mlflow_run"])
    tracker.image(sheet, key="evaluation_sheet", step=recipe.train.steps)
    tracker.metrics(flat_metrics(summary), recipe.train.steps, 0)
    if folder.is_local:
        tracker.file(Path(folder.path) / "report.html", "evaluation")
    tracker.flush()
    manifest.write(folder, "evaluate", **made_from)
    return summary


def _recipe(text: str, overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        if not override.startswith("evaluation."):
            raise UserError(f"--set: {override!r} is not of the evaluation; allowed: evaluation.field=value")
    return parse(text, overrides)


def distilled_student(student_folder: Folder) -> Sampler:
    """The student that `distill` left in this folder; its `model` is the teacher, whose other parts it shares."""
    recipe = parse(manifest.read(student_folder, "distill")["recipe"])
    teacher = models.load(
        models.teacher_folder(recipe.teacher, revision=recipe.revision), start_timestep=recipe.method.start_timestep
    )
    with TemporaryDirectory() as scratch:
        return Sampler(teacher, denoiser=models.load_denoiser((student_folder / "student").local_copy(Path(scratch))))


def _embedded(
    options: Evaluation, student: Sampler, teacher: Sampler
) -> tuple[dict[str, Any], list[dict[str, Any]], list[tuple[str, np.ndarray]], list[str]]:
    judge, clip = AttributeJudge.load(), Clip.load(EMBEDDED)
    nasa = [Way("nasa", scale) for scale in options.scales]
    cfg = Way("cfg", options.cfg_scale)
    first = options.seed * 1000
    seeds = range(first, first + options.exclusion_seeds)
    split = options.exclusion_seeds // 3
    best = exclusion.best_scale(exclusion.trials(student, judge, nasa, seeds[:split], calibration=True), nasa)
    tested = exclusion.trials(student, judge, [*nasa, cfg], seeds[split:], calibration=False)
    systems = _systems(options, student, teacher, [*nasa, cfg], best)
    rows = [row for system in systems for row in score(*system, BAD_PHOTO, judge, clip, options.seed)]
    summary = {
        "accuracy": [accuracy(name, [row for row in rows if row["system"] == name]) for name, *_ in systems],
        "student_minus_teacher_one_step": _paired(rows, "student, 1 step", "teacher, 1 step"),
        "chosen_scale": best.scale,
        "exclusion": exclusion.summarise(tested),
        "negative_prompt": BAD_PHOTO,
        "named_negative_prompt": DEGRADATIONS,
    }
    sheet_rows, captions = _exclusion_pictures(student, tested, [Way(), cfg, best], seeds[split:][:SHEET_SEEDS])
    return summary, rows, sheet_rows, captions


System = tuple[str, Sampler, Way, list[tuple[str, Scene]], str | None]


def _systems(options: Evaluation, student: Sampler, teacher: Sampler, ways: Sequence[Way], best: Way) -> list[System]:
    """What is compared on the held-out prompts. "Named" is away from the degradations by name, not from a bad photo."""
    prompts = held_out_prompts(options.prompts, options.seed)
    few = prompts[: options.teacher_prompts]
    many = Way("steps", options.teacher_guidance, options.teacher_steps)
    return [
        ("student, 1 step", student, Way(), prompts, None),
        *((f"student, 1 step, {way.label}", student, way, prompts, BAD_PHOTO) for way in ways),
        (f"student, 1 step, {best.label}, named", student, best, prompts, DEGRADATIONS),
        ("teacher, 1 step", teacher, Way(), prompts, None),
        (f"teacher, {many.label}", teacher, many, few, None),
        (f"teacher, {many.label}, negative", teacher, many, few, BAD_PHOTO),
        (f"teacher, {many.label}, named", teacher, many, few, DEGRADATIONS),
    ]


def score(
    system: str,
    sampler: Sampler,
    way: Way,
    prompts: Sequence[tuple[str, Scene]],
    away: str | None,
    negative: str,
    judge: AttributeJudge,
    clip: Clip,
    seed: int,
) -> list[dict[str, Any]]:
    """One row an image: what was asked for, what the judge saw, and both CLIP cosines."""
    texts = [prompt for prompt, _ in prompts]
    seeds = range(seed, seed + len(texts))
    images = sampler.images(way, texts, seeds, None if away is None else [away] * len(texts))
    found = judge.attributes(images)
    clip_pos, clip_neg = clip.scores(images, texts), clip.scores(images, [negative] * len(texts))
    return [
        {
            "system": system,
            "prompt": prompt,
            "seed": seeds[i],
            **{f"asked_{name}": getattr(scene, name) for name in JUDGED},
            **{f"shown_{name}": found[i][name] for name in (*JUDGED, "quality")},
            "clip_positive": clip_pos[i].item(),
            "clip_negative": clip_neg[i].item(),
        }
        for i, (prompt, scene) in enumerate(prompts)
    ]


def accuracy(system: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares of right attributes, of all three right, of clean images, of both; and CLIP means."""
    right = {name: [row[f"asked_{name}"] == row[f"shown_{name}"] for row in rows] for name in JUDGED}
    clean = [row["shown_quality"] == "clean" for row in rows]
    every = [all(flags) for flags in zip(*right.values(), strict=True)]
    return {
        "system": system,
        "images": len(rows),
        **{name: share(flags).as_dict() for name, flags in right.items()},
        "all_right": share(every).as_dict(),
        "clean": share(clean).as_dict(),
        "clean_and_right": share([a and b for a, b in zip(clean, every, strict=True)]).as_dict(),
        "clip_positive": float(np.mean([row["clip_positive"] for row in rows])),
        "clip_negative": float(np.mean([row["clip_negative"] for row in rows])),
    }


def _paired(rows: Sequence[dict[str, Any]], a: str, b: str) -> dict[str, float]:
    """The difference in "all three right" between two systems on the same prompts and seeds."""

    def flags(system: str) -> list[float]:
        own = [row for row in rows if row["system"] == system]
        return [float(all(row[f"asked_{name}"] == row[f"shown_{name}"] for name in JUDGED)) for row in own]

    return paired_bootstrap(flags(a), flags(b))


def _exclusion_pictures(
    student: Sampler, tested: Sequence[exclusion.Trial], ways: Sequence[Way], seeds: Sequence[int]
) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """The first seeds that show each pair's attribute, in every way, side by side."""
    plain = [trial for trial in tested if trial.way == Way().label and trial.seed in seeds]
    found = [(pair, [trial.seed for trial in plain if trial.pair == pair]) for pair in PAIRS]
    chosen = [(pair, shown[turn]) for turn in range(2) for pair, shown in found if turn < len(shown)]
    chosen = chosen[:SHEET_COLUMNS]
    texts, away = [pair.prompt for pair, _ in chosen], [pair.negative_prompt for pair, _ in chosen]
    picked = [seed for _, seed in chosen]
    rows = [(way.label, to_pixels(student.images(way, texts, picked, away))) for way in ways]
    return rows, [f"{text} MINUS {negative}" for text, negative in zip(texts, away, strict=True)]


def _pictures(
    recipe: Recipe, student: Sampler, prompt_folder: Folder
) -> tuple[dict[str, Any], list[dict[str, Any]], list[tuple[str, np.ndarray]], list[str]]:
    """For a user's own teacher there is no judge of attributes: pictures, and no score that means nothing."""
    name = min(file for file in manifest.read(prompt_folder, "prepare")["files"] if file.startswith("shard-"))
    table = pq.read_table(io.BytesIO(prompt_folder.read(name)))
    prompts = table["prompt"].slice(0, SHEET_COLUMNS).to_pylist()
    negative, seeds = "low quality", range(recipe.evaluation.seed, recipe.evaluation.seed + len(prompts))
    ways = [Way(), Way("cfg", recipe.evaluation.cfg_scale), *(Way("nasa", s) for s in recipe.evaluation.scales)]
    rows = [(way.label, to_pixels(student.images(way, prompts, seeds, [negative] * len(prompts)))) for way in ways]
    return {"negative_prompt": negative}, [], rows, prompts


def _write(
    folder: Folder,
    summary: dict[str, Any],
    rows: list[dict[str, Any]],
    sheet: Any,
    sheet_rows: list[tuple[str, np.ndarray]],
    captions: list[str],
    recipe: Recipe,
) -> None:
    if rows:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer)
        folder.write("scores.parquet", buffer.getvalue())
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    folder.write("contact_sheet.png", png.getvalue())
    folder.write("summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    folder.write("report.html", write_report(recipe, summary, sheet_rows, captions).encode())


def flat_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """The student's figures under names that MLflow can show."""
    metrics: dict[str, float] = {}
    for row in summary.get("accuracy", [])[:1]:
        for name in (*JUDGED, "all_right", "clean", "clean_and_right"):
            metrics[f"eval_{name}"] = row[name]["value"]
        metrics["eval_clip_positive"], metrics["eval_clip_negative"] = row["clip_positive"], row["clip_negative"]
    chosen = f"NASA {summary['chosen_scale']:g}" if "chosen_scale" in summary else ""
    for row in summary.get("exclusion", []):
        if row["way"] == chosen and row["trained_negative"]:
            for name in ("removed", "kept", "clean"):
                metrics[f"eval_exclusion_{name}"] = row[name]["value"]
    return metrics
