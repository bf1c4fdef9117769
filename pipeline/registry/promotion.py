"""The rule that makes a student the champion, and what it says of one student beside another."""

from dataclasses import asdict, dataclass
from typing import Any

from pipeline.evaluation.statistics import paired_bootstrap
from pipeline.recipe import Promotion
from pipeline.registry.scores import Scores


@dataclass(frozen=True)
class Comparison:
    """The gain in one metric on the same images, with its interval; positive is better.

    `problem` says why there is none.
    """

    metric: str
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    images: int = 0
    problem: str = ""

    @property
    def short(self) -> str:
        """'+0.061 (+0.032 to +0.090)'"""
        return "not comparable" if self.problem else f"{self.gain:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Decision:
    """What was decided, in one sentence, by which rule, against which version, by which figures."""

    promoted: bool
    verdict: str
    rule: Promotion
    against: str
    comparisons: tuple[Comparison, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(metric: str, new: Scores, old: Scores, confidence: float, *, higher_is_better: bool = True) -> Comparison:
    """The paired difference, new minus old where higher is better, else old minus new."""
    for scores, whose in ((new, "this student"), (old, "the champion")):
        if not scores.images.get(metric):
            return Comparison(metric, problem=f"the evaluation of {whose} has no {metric}")
    if new.metrics[metric].get("options") != old.metrics[metric].get("options"):
        return Comparison(metric, problem=f"the champion's {metric} is of another version or other options")
    ours, theirs = new.images[metric], old.images[metric]
    if ours.keys() != theirs.keys():
        return Comparison(metric, problem=f"the champion's {metric} is of other prompts or seeds")
    pairs = [(ours[image], theirs[image]) for image in sorted(ours)]
    better, worse = zip(*(pairs if higher_is_better else [(b, a) for a, b in pairs]), strict=True)
    found = paired_bootstrap(better, worse, confidence=confidence)
    return Comparison(metric, found["difference"], found["low"], found["high"], len(pairs))


def decide(rule: Promotion, new: Scores, old: Scores, against: str) -> Decision:
    """Promoted where the whole interval of the metric's gain is above the margin and every guard's above its loss."""
    main = compare(rule.metric, new, old, rule.confidence, higher_is_better=rule.higher_is_better)
    guards = tuple(
        compare(guard.metric, new, old, rule.confidence, higher_is_better=guard.higher_is_better)
        for guard in rule.guards
    )
    failed = _failed(rule, main, guards)
    sure = f"{100 * rule.confidence:g} % sure"
    if not failed:
        kept = f", {' and '.join(guard.metric for guard in guards)} kept" if guards else ""
        verdict = f"{main.metric} {main.short} better than version {against}: above {rule.margin:g}, {sure}{kept}"
    elif main.problem:
        verdict = f"not comparable with version {against}: {main.problem}"
    else:
        verdict = f"{main.metric} {main.short} beside version {against}: {failed}"
    return Decision(not failed, verdict, rule, against, (main, *guards))


def _failed(rule: Promotion, main: Comparison, guards: tuple[Comparison, ...]) -> str:
    """The first reason against it; empty where there is none."""
    if main.low is None or main.low <= rule.margin:
        return main.problem or f"not above {rule.margin:g}, {100 * rule.confidence:g} % sure"
    for guard, found in zip(rule.guards, guards, strict=True):
        if found.problem:
            return f"better, but {found.problem}"
        if found.low is None or found.low < -guard.most_loss:
            return f"better, but {found.metric} {found.short} may lose more than {guard.most_loss:g}"
    return ""


def first(rule: Promotion) -> Decision:
    return Decision(True, "the first version", rule, "")
