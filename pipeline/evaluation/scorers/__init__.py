"""Metrics of images, each to its authors' definition: `check` before any image is made, then `load`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipeline.errors import invalid
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
    for name in sorted(metric.model_fields_set - set(reads)):
        if (value := getattr(metric, name)) != Metric.model_fields[name].default:
            raise invalid(
                f"evaluation.metrics.{name}", value, f"one of the fields that {metric.kind!r} reads: {', '.join(reads)}"
            )
    SCORERS[metric.kind].check(metric)


def load(metric: Metric, device: torch.device | str = "cpu") -> Scorer:
    return SCORERS[metric.kind].load(metric, device)
