"""Comparison of two students on the same prompts and seeds."""

from collections.abc import Sequence

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.evaluation.aggregate import compute_paired_difference, list_metric_names, match_rows
from pipeline.evaluation.evaluate import REPORT, EvaluationManifest
from pipeline.evaluation.html_report import (
    COMPARED,
    Card,
    Column,
    PageData,
    Picture,
    build_slider_column,
    encode_data_uri,
    render,
)
from pipeline.evaluation.image_store import ImageStore
from pipeline.evaluation.results import EvaluationRow, Summary, read_rows, read_summary, select_student_rows
from pipeline.evaluation.statistics import Difference
from pipeline.storage import Folder
from pipeline.strict_model import StrictModel

COMPARISON = "comparison.json"
LOWER_IS_BETTER = ("clip_negative",)


class MetricComparison(StrictModel):
    """The difference a - b of one metric over `pairs` of images; `verdict` is "a", "b" or empty."""

    metric: str
    pairs: int
    sentence: str
    verdict: str = ""
    a: float | None = None
    b: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @staticmethod
    def from_difference(
        metric: str, difference: Difference, verdict: str, sentence: str, a: float, b: float
    ) -> "MetricComparison":
        """Return the comparison of a difference with its interval."""
        return MetricComparison(
            metric=metric,
            pairs=difference.count,
            sentence=sentence,
            verdict=verdict,
            a=a,
            b=b,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
        )


class Comparison(StrictModel):
    """Two systems by name, and their comparison in each metric."""

    a: str
    b: str
    metrics: tuple[MetricComparison, ...]


def compare(a: Folder, b: Folder, names: tuple[str, str], folder: Folder) -> Comparison:
    """Write `comparison.json` and a report of pairs of images; return the comparison.

    `a` and `b` are folders of evaluations. The verdict is that A beats B only if the 95 % paired bootstrap interval of
    the difference excludes 0.
    """
    (first, first_rows), (second, second_rows) = _read_evaluation(a), _read_evaluation(b)
    students = select_student_rows(first_rows, first), select_student_rows(second_rows, second)
    if not match_rows(*students):
        raise UserError(f"{b.uri}: shares no prompt and seed with {a.uri}. Evaluate both on the same prompt sets.")
    shared = [name for name in list_metric_names(students[0]) if name in list_metric_names(students[1])]
    metrics = tuple(_compare_metric(name, *students, (first, second), names) for name in shared)
    comparison = Comparison(a=names[0], b=names[1], metrics=metrics)
    folder.write_json(COMPARISON, comparison.to_dict())
    images = ImageStore(a, first_rows), ImageStore(b, second_rows)
    data = PageData(
        tuple(shared),
        tuple(_build_cards(shared, students, images, names)),
        tuple(_build_columns((first, second), images, names)),
    )
    page = render(
        "comparison.html.j2",
        data,
        title=f"{names[0]} and {names[1]}",
        description="Both in one step without a negative prompt, on the same prompts and the same noise.",
        gallery="Pairs, by their difference",
        card_width="18rem",
        comparison=comparison,
    )
    folder.write(REPORT, page.encode())
    return comparison


def _read_evaluation(folder: Folder) -> tuple[Summary, list[EvaluationRow]]:
    manifest.read(folder, EvaluationManifest)
    return read_summary(folder), read_rows(folder)


def _compare_metric(
    name: str,
    a: Sequence[EvaluationRow],
    b: Sequence[EvaluationRow],
    summaries: tuple[Summary, Summary],
    names: tuple[str, str],
) -> MetricComparison:
    first, second = (summary.metrics[name] for summary in summaries)
    if first.options != second.options:
        return MetricComparison(metric=name, pairs=0, sentence="another version or other options: not compared")
    difference = compute_paired_difference(a, b, name)
    sign = -1 if name in LOWER_IS_BETTER else 1
    low, high = sorted((sign * difference.low, sign * difference.high))
    verdict = "a" if low > 0 else "b" if high < 0 else ""
    winner, other = names if verdict == "a" else names[::-1]
    sentence = f"{winner} beats {other}" if verdict else "no significant difference"
    return MetricComparison.from_difference(name, difference, verdict, sentence, first.value, second.value)


def _build_cards(
    shared: Sequence[str],
    students: tuple[list[EvaluationRow], list[EvaluationRow]],
    images: Sequence[ImageStore],
    names: Sequence[str],
) -> list[Card]:
    """Return cards of two images, whose scores are the students' differences."""
    cards = []
    for rows in match_rows(*students):
        pictures = (
            Picture(name, encode_data_uri(store.read_png(row)))
            for name, store, row in zip(names, images, rows, strict=True)
        )
        scores = tuple(_subtract(*(row.scores.get(name) for row in rows)) for name in shared)
        cards.append(Card(tuple(pictures), scores, rows[0].set, rows[0].prompt, rows[0].seed))
    return cards


def _subtract(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _build_columns(summaries: Sequence[Summary], images: Sequence[ImageStore], names: Sequence[str]) -> list[Column]:
    """Return both students on the same prompts and noise by every sampling method that both have, for the slider."""
    first, second = (
        {column[0].image_key: {row.system: row for row in column} for column in store.select_side_by_side(summary)}
        for store, summary in zip(images, summaries, strict=True)
    )
    columns = []
    for key in [key for key in first if key in second][:COMPARED]:
        systems = [system for system in first[key] if system in second[key]]
        rows = [[student[key][system] for system in systems] for student in (first, second)]
        columns.append(build_slider_column(rows, images, names))
    return columns
