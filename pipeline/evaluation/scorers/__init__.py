"""Image metrics as their authors define them: `check` before any image is sampled, then `load`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import invalid
from pipeline.evaluation.scorers import aesthetic_quality, clip, hpsv2, imaging_quality
from pipeline.evaluation.scorers.scorer import Metric, Scorer

__all__ = ["SCORERS", "Kind", "Metric", "Scorer", "check", "check_all", "load"]


@dataclass(frozen=True)
class ScorerKind:
    """The functions that check and load a kind of metric, and the fields that only it reads."""

    check: Callable[[Metric], None]
    load: Callable[..., Scorer]
    reads: tuple[str, ...]


COMMON = ("kind", "weights", "batch_size")
SCORERS = {
    "hpsv2": ScorerKind(hpsv2.check, hpsv2.load, ("architecture", "version", "antialias", "jpeg_quality")),
    "clip": ScorerKind(clip.check, clip.load, ("architecture", "prefix")),
    "aesthetic": ScorerKind(aesthetic_quality.check, aesthetic_quality.load, ("architecture", "head")),
    "imaging": ScorerKind(imaging_quality.check, imaging_quality.load, ()),
}


def check(metric: Metric) -> None:
    """Check that a metric can be computed, from the names and shapes of its weights.

    Raises:
        UserError: naming what is wrong.
    """
    reads = COMMON + SCORERS[metric.kind].reads
    for name in sorted(metric.model_fields_set - set(reads)):
        if (value := getattr(metric, name)) != Metric.model_fields[name].default:
            raise invalid(
                f"evaluation.metrics.{name}", value, f"one of the fields that {metric.kind!r} reads: {', '.join(reads)}"
            )
    SCORERS[metric.kind].check(metric)


def check_all(metrics: Sequence[Metric]) -> None:
    """Check a recipe's metrics, at most one of each kind."""
    kinds = [metric.kind for metric in metrics]
    if len(set(kinds)) < len(kinds):
        raise invalid("evaluation.metrics", kinds, "each kind once")
    for metric in metrics:
        check(metric)


def load(metric: Metric, device: torch.device | str = "cpu") -> Scorer:
    """Load a metric's weights."""
    return SCORERS[metric.kind].load(metric, device)
