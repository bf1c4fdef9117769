"""Metrics of images, each to its authors' definition: `check` before any image is made, then `load`."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from pipeline.errors import UserError
from pipeline.evaluation.scorers import aesthetic, clip, hpsv2, imaging
from pipeline.evaluation.scorers.base import Metric, Scorer

__all__ = ["SCORERS", "Kind", "Metric", "Scorer", "check", "load"]


@dataclass(frozen=True)
class Kind:
    """How a metric is checked and loaded, and which fields of its own it reads."""

    check: Callable[[Metric], None]
    load: Callable[..., Scorer]
    reads: tuple[str, ...]


COMMON = ("kind", "weights", "batch_size")
SCORERS = {
    "hpsv2": Kind(hpsv2.check, hpsv2.load, ("architecture", "version", "antialias", "jpeg_quality")),
    "clip": Kind(clip.check, clip.load, ("architecture", "prefix")),
    "aesthetic": Kind(aesthetic.check, aesthetic.load, ("architecture", "head")),
    "imaging": Kind(imaging.check, imaging.load, ()),
}


def check(metric: Metric) -> None:
    """Raises a UserError where the metric cannot be computed. Reads names and shapes of weights, and no images."""
    reads = COMMON + SCORERS[metric.kind].reads
    for one in fields(metric):
        value = getattr(metric, one.name)
        if one.name not in reads and value != one.default:
            raise UserError(
                f"evaluation.metrics.{one.name}: {value!r} is of no use to {metric.kind!r}; allowed: {', '.join(reads)}"
            )
    SCORERS[metric.kind].check(metric)


def load(metric: Metric, device: torch.device | str = "cpu") -> Scorer:
    return SCORERS[metric.kind].load(metric, device)
