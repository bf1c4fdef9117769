"""Aggregation of an evaluation's rows, one per image, to its summary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from datasets_prep.shapes.prompts import DEGRADATIONS, PAIRS
from datasets_prep.shapes.scene import ATTRIBUTES
from pipeline.evaluation import exclusion
from pipeline.evaluation.judges import clip_attributes
from pipeline.evaluation.plan import DIVERSITY_SET, EXCLUSION_SET, PLAIN, STUDENT_SYSTEM, TEACHER, list_nasa_samplings
from pipeline.evaluation.results import EvaluationRow, MetricSummary, StyleTable, Summary, TeacherComparison
from pipeline.evaluation.scorers import hpsv2
from pipeline.evaluation.statistics import Difference, Share, bootstrap_paired, estimate_mean, share
from pipeline.evaluation.suites.shapes_suite import TEACHER_ONE_STEP
from pipeline.recipe import Evaluation, Recipe

ScorerOptions = Mapping[str, Mapping[str, JsonValue]]
"""The options of each column's scorer."""

PAIR_OF = {(pair.prompt, pair.negative_prompt): pair for pair in (*PAIRS, *clip_attributes.PAIRS)}
EXCLUSION_METRICS = tuple(f"exclusion_{name}" for name in exclusion.OUTCOMES)
COMPARED = ("diversity", "saturation", "contrast")  # prefixes of metrics in which a student should equal its teacher
FLAGS = (*ATTRIBUTES, "all_right", "clean", "clean_and_right")


def add_judged_metrics(row: EvaluationRow) -> EvaluationRow:
    """Return a row with the metrics that follow from the expected and the shown attributes, 1.0 or 0.0 each.

    Rows of the exclusion test that choose the scale, or whose negative prompt training never used, get none.
    """
    if "quality" not in row.shown or row.set == DIVERSITY_SET:
        return row
    flags: dict[str, float] = {}
    if row.set != EXCLUSION_SET:
        flags = {name: float(row.expected.get(name) == row.shown[name]) for name in ATTRIBUTES}
        all_right, clean = min(flags.values()), float(row.shown["quality"] == "clean")
        flags |= {"all_right": all_right, "clean": clean, "clean_and_right": all_right * clean}
    elif row.selected and (trial := to_trial(row)).pair.trained and not trial.selects_scale:
        flags = {f"exclusion_{name}": float(getattr(trial, name)) for name in exclusion.OUTCOMES}
    return replace(row, scores={**row.scores, **flags})


def to_trial(row: EvaluationRow) -> exclusion.Trial:
    """Return the trial of a row of the exclusion test."""
    pair = PAIR_OF[row.prompt, row.negative_prompt]
    return exclusion.Trial.from_shown(pair, row.seed, row.system, row.shown, selects_scale=bool(row.selects_scale))


def summarise(recipe: Recipe, rows: Sequence[EvaluationRow], options: ScorerOptions) -> Summary:
    """Return the summary of an evaluation."""
    judged = options.get("shown_quality", {})
    options = {**options, **dict.fromkeys((*FLAGS, *EXCLUSION_METRICS), judged)}
    samples = [row for row in rows if row.set != EXCLUSION_SET]
    names = dict.fromkeys(row.system for row in samples)
    by_system = {name: [row for row in samples if row.system == name] for name in names}
    systems = {name: _summarize_metrics(system_rows, options) for name, system_rows in by_system.items()}
    summary = Summary(
        student=STUDENT_SYSTEM,
        metrics=systems[STUDENT_SYSTEM],
        systems=systems,
        negative_prompts={row.set: row.negative_prompt for row in samples[::-1] if row.set != DIVERSITY_SET},
        against_teacher=compare_with_teacher(by_system),
    )
    if any(row.set == EXCLUSION_SET and row.selected for row in rows):
        summary = _add_exclusion(summary, recipe.evaluation, rows, options)
    if "all_right" in summary.metrics and TEACHER_ONE_STEP in by_system:
        gain = compute_paired_difference(by_system[STUDENT_SYSTEM], by_system[TEACHER_ONE_STEP], "all_right")
        update = {"student_minus_teacher_one_step": gain, "named_negative_prompt": DEGRADATIONS}
        summary = summary.model_copy(update=update)
    return summary


def compare_with_teacher(by_system: Mapping[str, Sequence[EvaluationRow]]) -> dict[str, TeacherComparison]:
    """Compare the student with its many-step teacher, in diversity and colour, on the same prompts and seeds."""
    teacher = next((name for name in by_system if name.startswith(f"{TEACHER}, ") and name != TEACHER_ONE_STEP), None)
    if teacher is None:
        return {}
    names = [name for name in list_metric_names(by_system[teacher]) if name.startswith(COMPARED)]
    matched, compared = match_rows(by_system[STUDENT_SYSTEM], by_system[teacher]), {}
    for name in names:
        scores = [(a.scores.get(name), b.scores.get(name)) for a, b in matched]
        pairs = [(student, reference) for student, reference in scores if student is not None and reference is not None]
        if pairs:
            student, reference = np.mean(pairs, axis=0).tolist()
            compared[name] = TeacherComparison(student=student, teacher=reference, images=len(pairs))
    return compared


def _summarize_metrics(rows: Sequence[EvaluationRow], options: ScorerOptions) -> dict[str, MetricSummary]:
    return {
        name: MetricSummary(
            **estimate_mean(_collect_values(rows, name)).model_dump(),
            options=dict(options.get(name, {})),
            sets=_set_means(rows, name),
            benchmark=_build_style_table(rows, name),
        )
        for name in list_metric_names(rows)
    }


def _set_means(rows: Sequence[EvaluationRow], name: str) -> dict[str, float] | None:
    """Return a metric's mean of each prompt set, if there are several."""
    by_set = _group_by_set(rows, name)
    return {set_name: estimate_mean(values).value for set_name, values in by_set.items()} if len(by_set) > 1 else None


def _build_style_table(rows: Sequence[EvaluationRow], name: str) -> StyleTable | None:
    """Return HPSv2's own table, if it scored its styles."""
    if name != "hpsv2":
        return None
    styles = {style: scores for style, scores in _group_by_set(rows, name).items() if style.startswith("hpsv2/")}
    return hpsv2.build_style_table(styles) if styles else None


def _group_by_set(rows: Sequence[EvaluationRow], name: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in rows:
        if (value := row.scores.get(name)) is not None:
            values.setdefault(row.set, []).append(value)
    return values


def _collect_values(rows: Iterable[EvaluationRow], name: str) -> list[float]:
    return [value for row in rows if (value := row.scores.get(name)) is not None]


def list_metric_names(rows: Sequence[EvaluationRow]) -> list[str]:
    """Return the names of all images' metrics, those of attributes first."""
    names = dict.fromkeys(name for row in rows for name, value in row.scores.items() if value is not None)
    return [name for name in FLAGS if name in names] + [name for name in names if name not in FLAGS]


def _add_exclusion(
    summary: Summary, evaluation: Evaluation, rows: Sequence[EvaluationRow], options: ScorerOptions
) -> Summary:
    trials = [to_trial(row) for row in rows if row.set == EXCLUSION_SET and row.selected]
    best = exclusion.choose_scale([trial for trial in trials if trial.selects_scale], list_nasa_samplings(evaluation))
    return summary.model_copy(
        update={
            "metrics": summary.metrics | _summarize_exclusion(rows, best.label, options),
            "chosen_scale": best.scale,
            "chosen_sampling_method": best.label,
            "exclusion": tuple(exclusion.summarise(trials)),
            "exclusion_by_pair": tuple(exclusion.summarise_by_pair(trials)),
        }
    )


def compute_selected_shares(rows: Sequence[EvaluationRow]) -> dict[tuple[str, str], Share]:
    """Return, by pair, the share of the test's correct plain images that show the attribute."""
    flags: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if row.set == EXCLUSION_SET and row.system == PLAIN.label and not row.selects_scale:
            pair = PAIR_OF[row.prompt, row.negative_prompt]
            if all(row.shown[name] == value for name, value in pair.prompted):
                flags.setdefault((pair.prompt, pair.negative_prompt), []).append(bool(row.selected))
    return {pair: share(values) for pair, values in flags.items()}


def _summarize_exclusion(
    rows: Sequence[EvaluationRow], sampling_method: str, options: ScorerOptions
) -> dict[str, MetricSummary]:
    """Return the metrics of negative prompts that training used, by the chosen sampling method."""
    tested = [row for row in rows if row.system == sampling_method and "exclusion_removed" in row.scores]
    return {
        name: MetricSummary(
            **estimate_mean(_collect_values(tested, name)).model_dump(),
            system=sampling_method,
            options=dict(options.get(name, {})),
        )
        for name in EXCLUSION_METRICS
    }


def compute_paired_difference(a: Sequence[EvaluationRow], b: Sequence[EvaluationRow], metric: str) -> Difference:
    """Return the mean of a - b on the prompts and seeds that both have, with its interval."""
    pairs = [(one.scores.get(metric), other.scores.get(metric)) for one, other in match_rows(a, b)]
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    return bootstrap_paired([one for one, _ in both], [other for _, other in both])


def match_rows(a: Sequence[EvaluationRow], b: Sequence[EvaluationRow]) -> list[tuple[EvaluationRow, EvaluationRow]]:
    """Return pairs of rows with the same prompt and seed."""
    by_key = {row.image_key: row for row in b}
    return [(row, by_key[row.image_key]) for row in a if row.image_key in by_key]
