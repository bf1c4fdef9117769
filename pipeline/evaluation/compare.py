"""Two students on the same prompts and seeds: is one better, or is it chance?"""

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.evaluation.aggregate import Row, image_key, metric_names, paired, same_prompt_and_noise
from pipeline.evaluation.evaluate import REPORT, SCORES, SUMMARY, EvaluationManifest
from pipeline.evaluation.images import ImageStore
from pipeline.evaluation.report import COMPARED, column_of, data_uri, render
from pipeline.storage import Folder

LOWER_IS_BETTER = ("clip_negative",)


def compare(a: Folder, b: Folder, names: tuple[str, str], folder: Folder) -> dict[str, Any]:
    """Write `comparison.json` and a report of pairs of images; returns the comparison.

    `a` and `b` are folders of evaluations. "A beats B" is said of a metric only where the 95 % paired bootstrap
    interval of the difference leaves out 0.
    """
    (first, first_rows), (second, second_rows) = _read(a), _read(b)
    summaries, rows = (first, second), (first_rows, second_rows)
    students = [_student(first_rows, first), _student(second_rows, second)]
    if not same_prompt_and_noise(*students):
        raise UserError(f"{b.uri}: shares no prompt and seed with {a.uri}. Evaluate both on the same prompt sets.")
    shared = [name for name in metric_names(students[0]) if name in metric_names(students[1])]
    metrics = [_metric(name, students[0], students[1], summaries, names) for name in shared]
    comparison = {"a": names[0], "b": names[1], "metrics": metrics}
    folder.write("comparison.json", (json.dumps(comparison, indent=2) + "\n").encode())
    pictures = ImageStore(a, rows[0]), ImageStore(b, rows[1])
    data = {"metrics": shared, "cards": _pairs(shared, students, pictures, names)}
    data["columns"] = _columns(summaries, pictures, names)
    page = render(
        "comparison.html.j2",
        data,
        title=f"{names[0]} beside {names[1]}",
        what="Both in one step without a negative prompt, on the same prompts and the same noise.",
        gallery="Pairs, by their difference",
        card_width="18rem",
        a=names[0],
        b=names[1],
        comparison=comparison,
    )
    folder.write(REPORT, page.encode())
    return comparison


def _student(rows: list[Row], summary: dict[str, Any]) -> list[Row]:
    return [row for row in rows if row["system"] == summary["student"]]


def _read(folder: Folder) -> tuple[dict[str, Any], list[Row]]:
    manifest.read(folder, EvaluationManifest)
    table = pq.read_table(io.BytesIO(folder.read(SCORES)))
    return json.loads(folder.read(SUMMARY)), table.to_pylist()


def _metric(name: str, a: list[Row], b: list[Row], summaries: Any, names: tuple[str, str]) -> dict[str, Any]:
    own = [summary["metrics"].get(name, {}) for summary in summaries]
    if own[0].get("options") != own[1].get("options"):
        return {
            "metric": name,
            "pairs": 0,
            "verdict": "",
            "sentence": "of another version or other options: not compared",
        }
    found = paired(a, b, name)
    sign = -1 if name in LOWER_IS_BETTER else 1
    ends = sorted((sign * found["low"], sign * found["high"]))
    verdict = "a" if ends[0] > 0 else "b" if ends[1] < 0 else ""
    winner, other = names if verdict == "a" else names[::-1]
    sentence = f"{winner} beats {other}" if verdict else "no difference is shown"
    values = {"a": own[0].get("value"), "b": own[1].get("value")}
    return {"metric": name, **values, **found, "verdict": verdict, "sentence": sentence}


def _pairs(
    shared: list[str], students: list[list[Row]], pictures: tuple[ImageStore, ImageStore], names: tuple[str, str]
) -> list[dict[str, Any]]:
    """Cards of two images, whose scores are the differences."""
    cards = []
    for one, other in same_prompt_and_noise(*students):
        images = [
            {"way": name, "image": data_uri(own.png(row))}
            for name, own, row in zip(names, pictures, (one, other), strict=True)
        ]
        scores = [None if None in (one[name], other[name]) else one[name] - other[name] for name in shared]
        cards.append({"pictures": images, "scores": scores} | {name: one[name] for name in ("set", "prompt", "seed")})
    return cards


def _columns(
    summaries: Sequence[dict[str, Any]], pictures: Sequence[ImageStore], names: tuple[str, str]
) -> list[dict[str, Any]]:
    """Both students on the same prompt and noise in every way that both have, for the slider."""
    own = [
        {image_key(column[0]): {row["system"]: row for row in column} for column in each.side_by_side(summary)}
        for each, summary in zip(pictures, summaries, strict=True)
    ]
    found = []
    for key in (key for key in own[0] if key in own[1]):
        ways = [way for way in own[0][key] if way in own[1][key]]
        found.append([[each[key][way] for way in ways] for each in own])
    return [column_of(columns, pictures, names) for columns in found[:COMPARED]]
