"""Results of an evaluation: a row for each image, and the summary of a student's metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import Field, JsonValue

from pipeline.evaluation.statistics import Difference, Estimate, Share
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

SCORES, SUMMARY = "scores.parquet", "summary.json"
_EXPECTED, _SHOWN = "expected_", "shown_"  # prefixes of columns

ImageKey = tuple[str, str, str, int]
"""Prompt set, prompt, negative prompt and seed: what an image was made from, besides model and sampling method."""


@dataclass(frozen=True)
class EvaluationRow:
    """One image: what it was made from, and its scores.

    Attributes:
        system, set, index, prompt, seed: its system and sample; `index` is None in the exclusion test.
        negative_prompt: the sample's negative prompt.
        used_negative_prompt: the negative prompt that the system was given, or None.
        selects_scale: in the exclusion test, whether the seed is one of those that choose the scale.
        selected: in the exclusion test, whether the plain image shows the attribute.
        images: the key of the Parquet file with the image.
        expected: the attributes that the image should show, by name.
        shown: the attributes that the judge sees, by name.
        scores: the metrics of the image; None if a metric does not apply.
    """

    system: str
    set: str
    prompt: str
    negative_prompt: str
    seed: int
    index: int | None = None
    used_negative_prompt: str | None = None
    selects_scale: bool | None = None
    selected: bool | None = None
    images: str = ""
    expected: Mapping[str, str] = field(default_factory=dict)
    shown: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def image_key(self) -> ImageKey:
        """The key that images of the same sample share."""
        return self.set, self.prompt, self.negative_prompt, self.seed

    def to_columns(self) -> dict[str, object]:
        """Return the values of a table's columns; those that are None are left out."""
        values = {name: value for name, value in vars(self).items() if name not in ("expected", "shown", "scores")}
        values |= {f"{_EXPECTED}{name}": value for name, value in self.expected.items()}
        values |= {f"{_SHOWN}{name}": value for name, value in self.shown.items()} | dict(self.scores)
        return {name: value for name, value in values.items() if value is not None}

    @staticmethod
    def from_columns(columns: Mapping[str, Any]) -> "EvaluationRow":
        """Return the row of a table's columns; a column of another name is a metric."""
        fields: dict[str, Any] = {"expected": {}, "shown": {}, "scores": {}}
        for name, value in columns.items():
            if name in EvaluationRow.__dataclass_fields__:
                fields[name] = value
            elif value is None:
                continue
            elif name.startswith(_EXPECTED):
                fields["expected"][name.removeprefix(_EXPECTED)] = value
            elif name.startswith(_SHOWN):
                fields["shown"][name.removeprefix(_SHOWN)] = value
            else:
                fields["scores"][name] = value
        return EvaluationRow(**fields)


class StyleScore(StrictModel):
    """HPSv2's mean and deviation of a style."""

    mean: float
    std: float


class StyleTable(StrictModel):
    """HPSv2's table: the overall mean, and each style's."""

    mean: float
    styles: dict[str, StyleScore]


class MetricSummary(Estimate):
    """A metric's mean over a system's images.

    Attributes:
        options: the options of its scorer.
        system: the system, if it is not the summary's student.
        sets: the mean of each prompt set, if there are several.
        benchmark: HPSv2's own table.
    """

    options: dict[str, JsonValue] = Field(default_factory=dict)
    system: str | None = None
    sets: dict[str, float] | None = None
    benchmark: StyleTable | None = None


class ExclusionShares(StrictModel):
    """The exclusion test by one sampling method, over the negatives that training used or over the others."""

    sampling_method: str
    trained_negative: bool
    removed: Share
    kept: Share
    clean: Share


class CorrectedShare(StrictModel):
    """A share corrected for a judge's errors: if they are independent (`value`), and if they persist; 95 % interval."""

    value: float
    persistent: float
    low: float
    high: float


class PairShares(StrictModel):
    """The exclusion test of one pair by one sampling method."""

    prompt: str
    negative_prompt: str
    sampling_method: str
    removed: Share
    kept: Share
    removed_corrected: CorrectedShare | None = None


class JudgeAccuracy(StrictModel):
    """A judge's sensitivity and specificity for one class, over labelled images."""

    sensitivity: Share
    specificity: Share


class TeacherComparison(StrictModel):
    """The means of a metric over the images that the student and its many-step teacher both sampled."""

    student: float
    teacher: float
    images: int

    @property
    def ratio(self) -> float:
        """The student's share of the teacher's value."""
        return self.student / self.teacher if self.teacher else math.nan


class Summary(StrictModel):
    """The summary of an evaluation.

    Attributes:
        student: the name of the student's system in one step without a negative prompt.
        metrics: each metric of that system; those of the exclusion test are by the chosen sampling method.
        systems: the metrics of every system.
        negative_prompts: the first negative prompt of each prompt set.
        chosen_scale, chosen_sampling_method: the best on the seeds that choose the scale.
        exclusion, exclusion_by_pair: the exclusion test.
        student_minus_teacher_one_step: the paired difference of `all_right`.
        named_negative_prompt: the negative prompt of systems "named".
        calibration: the judge's accuracy by class.
        against_teacher: diversity, saturation and contrast beside the teacher's.
    """

    student: str
    metrics: dict[str, MetricSummary]
    systems: dict[str, dict[str, MetricSummary]] = Field(default_factory=dict)
    negative_prompts: dict[str, str] = Field(default_factory=dict)
    chosen_scale: float | None = None
    chosen_sampling_method: str | None = None
    exclusion: tuple[ExclusionShares, ...] = ()
    exclusion_by_pair: tuple[PairShares, ...] = ()
    student_minus_teacher_one_step: Difference | None = None
    named_negative_prompt: str | None = None
    calibration: dict[str, JudgeAccuracy] | None = None
    against_teacher: dict[str, TeacherComparison] = Field(default_factory=dict)


def write_rows(folder: Folder, rows: Sequence[EvaluationRow]) -> None:
    """Write `scores.parquet`; rows of different sets have different columns."""
    columns = [row.to_columns() for row in rows]
    first = {name: value for values in columns[::-1] for name, value in values.items()}
    folder.write_table(SCORES, pa.Table.from_pylist(columns, schema=pa.Table.from_pylist([first]).schema))


def read_rows(folder: Folder) -> list[EvaluationRow]:
    """Return the rows of `scores.parquet`."""
    return [EvaluationRow.from_columns(columns) for columns in folder.read_table(SCORES).to_pylist()]


def read_summary(folder: Folder) -> Summary:
    """Return the summary of a finished evaluation."""
    return Summary.from_values(folder.read_json(SUMMARY), f"{folder.uri}/{SUMMARY}")


def select_student_rows(rows: Iterable[EvaluationRow], summary: Summary) -> list[EvaluationRow]:
    """Return the rows of the student in one step without a negative prompt."""
    return [row for row in rows if row.system == summary.student]
