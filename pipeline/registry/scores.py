"""The scores of a student, metric by metric and image by image."""

import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.evaluation.plan import EXCLUSION_SET
from pipeline.storage import Folder

SUMMARY, ROWS = "summary.json", "scores.parquet"
FILES = (SUMMARY, ROWS, "contact_sheet.png", "report.html", "manifest.json")
Image = tuple[str, str, int]  # set, prompt, seed


@dataclass(frozen=True)
class Scores:
    """`metrics` has each metric's mean, interval and options; `images` its value of each image that has one.

    `sha256` is of both files: of another evaluation it is another.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    images: Mapping[str, Mapping[Image, float]]
    sha256: str

    @staticmethod
    def read(folder: Folder) -> "Scores":
        """Read a student's scores; an evaluation without a judge has none."""
        texts = [folder.read(name) if folder.exists(name) else b"" for name in (SUMMARY, ROWS)]
        summary = json.loads(texts[0])
        metrics = summary.get("metrics", {})
        systems = {name: metric.get("system", summary["student"]) for name, metric in metrics.items()}
        images = _images(texts[1], systems) if texts[1] and metrics else {}
        return Scores(metrics, images, hashlib.sha256(b"\0".join(texts)).hexdigest())

    def has(self, metric: str) -> bool:
        """Tell whether the metric has a value, which a mean over no images, or over one that is no number, has not."""
        found = self.metrics.get(metric)
        return bool(found and found.get("images") and math.isfinite(found["value"]))

    def short(self, metric: str) -> str:
        """'0.750 (0.712-0.781)'; empty where the metric is missing."""
        if metric not in self.metrics:
            return ""
        found = self.metrics[metric]
        return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def _images(content: bytes, systems: Mapping[str, str]) -> dict[str, dict[Image, float]]:
    """Return of each metric, which is of a system, its value of each image.

    A value is the mean over the rows of the same set, prompt and seed, which differ in their negative prompt. Of
    exclusion, prompts with several negatives are told apart by them: each is a question of its own.
    """
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    found: dict[str, dict[Image, list[float]]] = {metric: defaultdict(list) for metric in systems}
    for metric in systems:
        own = [row for row in rows if row["system"] == systems[metric] and _is_number(row.get(metric))]
        several = _with_several_negatives(own)
        for row in own:
            told = f"{row['prompt']} MINUS {row['negative_prompt']}" if row["prompt"] in several else row["prompt"]
            found[metric][row["set"], told, row["seed"]].append(row[metric])
    return {
        metric: {image: sum(values) / len(values) for image, values in images.items()}
        for metric, images in found.items()
    }


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _with_several_negatives(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the prompts of exclusion that stand beside more than one negative prompt."""
    negatives: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["set"] == EXCLUSION_SET:
            negatives[row["prompt"]].add(row["negative_prompt"])
    return {prompt for prompt, own in negatives.items() if len(own) > 1}
