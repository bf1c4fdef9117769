"""Promotion: the rule that makes a student the champion, and its decisions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from pipeline.evaluation.plan import EXCLUSION_SET
from pipeline.evaluation.statistics import bootstrap_clustered, compute_discordant_interval
from pipeline.recipe import GuardrailMetric, Promotion
from pipeline.registry.student_scores import ImageKey, Scores

MIN_IMAGES = 30  # fewest images per student for a decision


@dataclass(frozen=True)
class Comparison:
    """The gain in one metric with its interval; positive is better.

    `images` is the smaller number of images of the two; `problem` says why the metric was not compared.
    """

    metric: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    images: int = 0
    problem: str = ""

    @property
    def short(self) -> str:
        """The gain and its interval, such as '+0.061 (+0.032 to +0.090)'."""
        return "not comparable" if self.problem else f"{self.gain:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Decision:
    """The decision about a version: a sentence, the rule, the version it was compared with, and the comparisons."""

    promoted: bool
    verdict: str
    rule: Promotion
    against: str
    comparisons: tuple[Comparison, ...] = ()

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the decision as JSON values."""
        values: dict[str, JsonValue] = to_jsonable_python(self)
        return values


def compare_metric(
    metric: str,
    new: Scores,
    old: Scores,
    confidence: float,
    *,
    higher_is_better: bool = True,
    min_images: int = MIN_IMAGES,
) -> Comparison:
    """Compare on the same images: new minus old if higher is better, else old minus new.

    An exclusion metric covers only seeds whose image without a negative prompt shows the attribute. These seeds differ
    between students, so the means over each student's images are compared, stratified by prompt, since some pairs are
    harder than others (`statistics.bootstrap_clustered`). For a binary metric the interval is the wider one of the
    bootstrap's and the exact sign test's.
    """
    for scores, whose in ((new, "this student"), (old, "the champion")):
        if not scores.images.get(metric):
            return Comparison(metric, problem=f"the evaluation of {whose} has no {metric}")
        if not math.isfinite(scores.metrics[metric].value):
            return Comparison(metric, problem=f"the {metric} of {whose} is not a number on some image")
    if new.metrics[metric].options != old.metrics[metric].options:
        return Comparison(metric, problem=f"the champion's {metric} has another version or other options")
    new_values, old_values = new.images[metric], old.images[metric]
    selected = _is_selected(new_values) and _is_selected(old_values)
    if not selected:
        shared = new_values.keys() & old_values.keys()
        if not shared:
            return Comparison(metric, problem=f"the champion's {metric} was measured on other prompts or seeds")
        new_values, old_values = ({key: v[key] for key in sorted(shared)} for v in (new_values, old_values))
    better, worse = (new_values, old_values) if higher_is_better else (old_values, new_values)
    stratum = (lambda image: image[1]) if selected else (lambda image: None)
    difference = bootstrap_clustered(better, worse, confidence=confidence, stratum=stratum)
    if math.isnan(difference.difference):
        return Comparison(metric, problem=f"no prompt has images with {metric} in both evaluations")
    if difference.count < min_images:
        return Comparison(
            metric, problem=f"{metric} was measured on {difference.count} images; at least {min_images} are needed"
        )
    low, high = difference.low, difference.high
    if not selected and {*better.values(), *worse.values()} <= {0.0, 1.0}:
        exact = compute_discordant_interval(list(better.values()), list(worse.values()), confidence)
        low, high = min(low, exact[0]), max(high, exact[1])
    return Comparison(metric, difference.difference, low, high, difference.count)


def _is_selected(images: Mapping[ImageKey, float]) -> bool:
    """Tell whether the seeds were selected by the student's images without a negative prompt."""
    return all(name == EXCLUSION_SET for name, _, _ in images)


def decide(rule: Promotion, new: Scores, old: Scores, against: str) -> Decision:
    """Decide whether the gain's interval lies above the margin, and that of each guardrail above `-max_regression`."""
    main = compare_metric(rule.metric, new, old, rule.decision_confidence, higher_is_better=rule.higher_is_better)
    guardrail_gains = tuple(
        compare_metric(
            guardrail.metric,
            new,
            old,
            rule.confidence,
            higher_is_better=guardrail.higher_is_better,
            min_images=_compute_min_images(guardrail),
        )
        for guardrail in rule.guardrails
    )
    failed = _find_rejection_reason(rule, main, guardrail_gains)
    if not failed:
        names = " and ".join(gain.metric for gain in guardrail_gains)
        kept = f"; {names} did not regress" if names else ""
        margin = f"above {rule.margin:g} {_describe_confidence(rule)}"
        verdict = f"{main.metric} {main.short} against version {against}: {margin}{kept}"
    elif main.problem:
        verdict = f"not comparable with version {against}: {main.problem}"
    else:
        verdict = f"{main.metric} {main.short} against version {against}: {failed}"
    return Decision(not failed, verdict, rule, against, (main, *guardrail_gains))


def _compute_min_images(guardrail: GuardrailMetric) -> int:
    """Return how many images without a regression rule out a rate above `max_regression` (the rule of three)."""
    return max(MIN_IMAGES, math.ceil(3 / guardrail.max_regression)) if guardrail.max_regression else MIN_IMAGES


def _describe_confidence(rule: Promotion) -> str:
    decisions = f" over {rule.decisions} decisions" if rule.decisions > 1 else ""
    return f"at {100 * rule.confidence:g} % confidence{decisions}"


def _find_rejection_reason(rule: Promotion, main: Comparison, guardrail_gains: tuple[Comparison, ...]) -> str:
    """Return the first reason against promotion, or an empty string."""
    if main.low is None or main.low <= rule.margin:
        return main.problem or f"not above {rule.margin:g} {_describe_confidence(rule)}"
    for guardrail, comparison in zip(rule.guardrails, guardrail_gains, strict=True):
        if comparison.problem:
            return f"better, but {comparison.problem}"
        if comparison.low is None or comparison.low < -guardrail.max_regression:
            return f"better, but {comparison.metric} {comparison.short} may lose more than {guardrail.max_regression:g}"
    return ""


def decide_first(rule: Promotion, scores: Scores) -> Decision:
    """Make the first student the champion if its evaluation has the rule's metric."""
    if scores.has(rule.metric):
        return Decision(True, "the first version with a score", rule, "")
    verdict = f"its evaluation has no {rule.metric}: if its images are good, promote it by hand"
    return Decision(False, verdict, rule, "")
