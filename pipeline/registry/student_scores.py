"""The scores of a student, metric by metric and image by image."""

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.evaluation.plan import EXCLUSION_SET
from pipeline.evaluation.results import SCORES, SUMMARY, EvaluationRow, MetricSummary, Summary
from pipeline.hashing import hash_bytes
from pipeline.storage import Folder

FILES = (SUMMARY, SCORES, "contact_sheet.png", "report.html", "manifest.json")
ImageKey = tuple[str, str, int]  # set, prompt, seed


@dataclass(frozen=True)
class Scores:
    """`metrics` has each metric's summary; `images` its value for each image that has one.

    `sha256` is the hash of both files, which differs between evaluations. `chosen_scale` is the scale that the
    exclusion test chose.
    """

    metrics: Mapping[str, MetricSummary]
    images: Mapping[str, Mapping[ImageKey, float]]
    sha256: str
    chosen_scale: float | None = None

    @staticmethod
    def read(folder: Folder) -> "Scores":
        """Read a student's scores; an evaluation without a judge has none."""
        contents = [folder.read(name) if folder.exists(name) else b"" for name in (SUMMARY, SCORES)]
        summary = Summary.from_values(folder.read_json(SUMMARY), f"{folder.uri}/{SUMMARY}")
        systems = {name: metric.system or summary.student for name, metric in summary.metrics.items()}
        images = _index_values_by_image(contents[1], systems) if contents[1] and systems else {}
        return Scores(summary.metrics, images, hash_bytes(b"\0".join(contents)), summary.chosen_scale)

    def has(self, metric: str) -> bool:
        """Tell whether a metric has a value: a finite mean over at least one image."""
        summary = self.metrics.get(metric)
        return bool(summary and summary.images and math.isfinite(summary.value))

    def format_metric(self, metric: str) -> str:
        """Return a metric such as '0.750 (0.712-0.781)'; an empty string if it is missing."""
        if metric not in self.metrics:
            return ""
        summary = self.metrics[metric]
        return f"{summary.value:.3f} ({summary.low:.3f}-{summary.high:.3f})"


def _index_values_by_image(content: bytes, systems: Mapping[str, str]) -> dict[str, dict[ImageKey, float]]:
    """Return each metric's value for each image of its system.

    A value is the mean over the rows of the same set, prompt and seed, which differ in their negative prompt. In the
    exclusion test, a prompt with several negative prompts is a different image for each of them.
    """
    rows = [EvaluationRow.from_columns(columns) for columns in pq.read_table(io.BytesIO(content)).to_pylist()]
    values_by_image: dict[str, dict[ImageKey, list[float]]] = {metric: defaultdict(list) for metric in systems}
    for metric, system in systems.items():
        values = [(row, row.scores.get(metric)) for row in rows if row.system == system]
        scored = [(row, value) for row, value in values if value is not None and not math.isnan(value)]
        several = _find_prompts_with_several_negatives([row for row, _ in scored])
        for row, value in scored:
            prompt = f"{row.prompt} MINUS {row.negative_prompt}" if row.prompt in several else row.prompt
            values_by_image[metric][row.set, prompt, row.seed].append(value)
    return {
        metric: {image: sum(values) / len(values) for image, values in images.items()}
        for metric, images in values_by_image.items()
    }


def _find_prompts_with_several_negatives(rows: Sequence[EvaluationRow]) -> set[str]:
    """Return the prompts of the exclusion test that have more than one negative prompt."""
    negatives: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.set == EXCLUSION_SET:
            negatives[row.prompt].add(row.negative_prompt)
    return {prompt for prompt, used in negatives.items() if len(used) > 1}
