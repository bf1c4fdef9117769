"""Aggregation of an evaluation's rows, one per image, to its summary."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets_prep.shapes.prompts import DEGRADATIONS, PAIRS
from pipeline.evaluation import exclusion
from pipeline.evaluation.judges import clip_attributes
from pipeline.evaluation.plan import EXCLUSION_SET, PLAIN, STUDENT_SYSTEM, nasa_samplings
from pipeline.evaluation.scorers import hpsv2
from pipeline.evaluation.statistics import Share, mean, paired_bootstrap, share
from pipeline.evaluation.suites.shapes import ATTRIBUTES, TEACHER_ONE_STEP
from pipeline.recipe import Evaluation, Recipe

Row = dict[str, Any]
PAIR_OF = {(pair.prompt, pair.negative_prompt): pair for pair in (*PAIRS, *clip_attributes.PAIRS)}
EXCLUSION = ("removed", "kept", "clean")
FLAGS = (*ATTRIBUTES, "all_right", "clean", "clean_and_right")


def judge(rows: Iterable[Row]) -> None:
    """Add to each row the metrics that follow from what its image should show and shows, 1.0 or 0.0 each.

    Rows of the exclusion test that choose the scale, or whose negative training never used, get none.
    """
    for row in rows:
        if "shown_quality" not in row:
            continue
        if row["set"] != EXCLUSION_SET:
            right = {name: float(row[f"asked_{name}"] == row[f"shown_{name}"]) for name in ATTRIBUTES}
            every, clean = min(right.values()), float(row["shown_quality"] == "clean")
            row |= {**right, "all_right": every, "clean": clean, "clean_and_right": every * clean}
        elif row["selected"] and (trial := trial_of(row)).pair.trained and not trial.calibration:
            row |= {f"exclusion_{name}": float(getattr(trial, name)) for name in EXCLUSION}


def trial_of(row: Row) -> exclusion.Trial:
    """Return the trial of a row of the exclusion test."""
    pair = PAIR_OF[row["prompt"], row["negative_prompt"]]
    shown = {name.removeprefix("shown_"): value for name, value in row.items() if name.startswith("shown_")}
    return exclusion.Trial.of(pair, row["seed"], row["system"], shown, calibration=row["calibration"])


def summarise(recipe: Recipe, rows: Sequence[Row], options: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of an evaluation.

    `metrics` has of each metric the student's mean in one step without a negative prompt, with its 95 % interval, and
    `systems` the same for each system. `options` are those of each column's scorer.
    """
    judged = options.get("shown_quality", {})
    options = options | dict.fromkeys([*FLAGS, *(f"exclusion_{name}" for name in EXCLUSION)], judged)
    asked = [row for row in rows if row["set"] != EXCLUSION_SET]
    by_system = {name: [row for row in asked if row["system"] == name] for name in _distinct(asked, "system")}
    systems = {name: _metrics(own, options) for name, own in by_system.items()}
    summary: dict[str, Any] = {"student": STUDENT_SYSTEM, "metrics": dict(systems[STUDENT_SYSTEM]), "systems": systems}
    if any(row["set"] == EXCLUSION_SET and row["selected"] for row in rows):
        summary |= _exclusion(recipe.evaluation, rows)
        summary["metrics"] |= _excluded(rows, summary["chosen_way"], options)
    if "all_right" in systems[STUDENT_SYSTEM] and TEACHER_ONE_STEP in by_system:
        summary["student_minus_teacher_one_step"] = paired(
            by_system[STUDENT_SYSTEM], by_system[TEACHER_ONE_STEP], "all_right"
        )
        summary |= {"named_negative_prompt": DEGRADATIONS}
    summary["negative_prompts"] = {row["set"]: row["negative_prompt"] for row in asked[::-1]}
    return summary


def _metrics(rows: Sequence[Row], options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {**mean([row[name] for row in rows if row.get(name) is not None]), "options": options.get(name, {})}
        | _by_set(name, rows)
        for name in metric_names(rows)
    }


def _by_set(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the means of each set if there are several, and HPSv2's own table for its styles."""
    own = [row for row in rows if row.get(name) is not None]
    scores = {each: [row[name] for row in own if row["set"] == each] for each in _distinct(own, "set")}
    styles = {each: values for each, values in scores.items() if each.startswith("hpsv2/")}
    found: dict[str, Any] = {}
    if len(scores) > 1:
        found["sets"] = {each: mean(values)["value"] for each, values in scores.items()}
    if name == "hpsv2" and styles:
        found["benchmark"] = hpsv2.summary(styles)
    return found


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Return the columns that are metrics of an image."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    return [name for name in FLAGS if name in names] + [name for name in names if name not in FLAGS]


def _exclusion(options: Evaluation, rows: Sequence[Row]) -> dict[str, Any]:
    trials = [trial_of(row) for row in rows if row["set"] == EXCLUSION_SET and row["selected"]]
    best = exclusion.best_scale([trial for trial in trials if trial.calibration], nasa_samplings(options))
    return {
        "chosen_scale": best.scale,
        "chosen_way": best.label,
        "exclusion": exclusion.summarise(trials),
        "exclusion_by_pair": exclusion.by_pair(trials),
    }


def selected(rows: Sequence[Row]) -> dict[tuple[str, str], Share]:
    """Return, by pair, the share of the test's correct plain images that show the attribute."""
    found: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if row["set"] == EXCLUSION_SET and row["system"] == PLAIN.label and not row["calibration"]:
            pair = PAIR_OF[row["prompt"], row["negative_prompt"]]
            if all(row[f"shown_{name}"] == value for name, value in pair.asked):
                found.setdefault((pair.prompt, pair.negative_prompt), []).append(row["selected"])
    return {pair: share(flags) for pair, flags in found.items()}


def _excluded(rows: Sequence[Row], way: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of negatives that training used, by the chosen method."""
    own = [row for row in rows if row["system"] == way and "exclusion_removed" in row]
    return {
        name: {**mean([row[name] for row in own]), "system": way, "options": options.get(name, {})}
        for name in (f"exclusion_{each}" for each in EXCLUSION)
    }


def paired(a: Sequence[Row], b: Sequence[Row], metric: str) -> dict[str, Any]:
    """Return the mean of a - b on the prompts and seeds that both have, with its interval."""
    both = [
        (one[metric], other[metric])
        for one, other in same_prompt_and_noise(a, b)
        if one.get(metric) is not None and other.get(metric) is not None
    ]
    if not both:
        return {"pairs": 0}
    return {**paired_bootstrap(*zip(*both, strict=True)), "pairs": len(both)}


def same_prompt_and_noise(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return pairs of rows with the same prompt and noise."""
    theirs = {image_key(row): row for row in b}
    return [(row, theirs[image_key(row)]) for row in a if image_key(row) in theirs]


def image_key(row: Row) -> tuple[Any, ...]:
    """Return what an image was made from, besides model and sampling method."""
    return row["set"], row["prompt"], row["negative_prompt"], row["seed"]


def _distinct(rows: Iterable[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))
