"""Evaluation: fixed prompts and seeds through the student and its teacher, scored, tabled and drawn."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import manifest, models, tracking
from pipeline.errors import UserError
from pipeline.evaluation import asks, exclusion, figures, pairs, panel
from pipeline.evaluation.pictures import Pictures
from pipeline.evaluation.report import write_report
from pipeline.evaluation.sampling import Sampler
from pipeline.evaluation.studio import Setup, student_of, work
from pipeline.recipe import Recipe, dump, parse
from pipeline.resources import evaluation_request, wait_for_resources
from pipeline.session import ray_session
from pipeline.storage import Folder

SCORES, SUMMARY, SHEET, REPORT = "scores.parquet", "summary.json", "contact_sheet.png", "report.html"


@dataclass(frozen=True)
class Subject:
    """A student to evaluate: its diffusers folder, the hashes of both models, and the run it is of."""

    student: Folder
    student_sha256: str
    teacher_sha256: str
    mlflow_run: str
    step: int

    @staticmethod
    def of(distilled: Folder, record: dict[str, Any]) -> "Subject":
        """What `distill` left."""
        hashes = record["student_sha256"], record["teacher_sha256"]
        return Subject(distilled / "student", *hashes, record["mlflow_run"], record["metrics"]["step"])


def evaluate(
    student_folder: Folder,
    prompt_folder: Folder,
    folder: Folder,
    tracking_uri: str,
    overrides: Sequence[str] = (),
    address: str | None = None,
) -> dict[str, Any]:
    """Write `scores.parquet`, `summary.json`, `contact_sheet.png`, `report.html` and the manifest.

    `overrides` are of the recipe's `evaluation` section. The same evaluation of the same student is left as it is, one
    that was stopped goes on.
    """
    record = manifest.read(student_folder, "distill")
    recipe = _recipe(record["recipe"], overrides)
    return evaluate_student(Subject.of(student_folder, record), recipe, prompt_folder, folder, tracking_uri, address)


def evaluate_student(
    subject: Subject,
    recipe: Recipe,
    prompt_folder: Folder,
    folder: Folder,
    tracking_uri: str,
    address: str | None = None,
    *,
    patient: bool = False,
) -> dict[str, Any]:
    """Evaluate any student, a finished one's or a checkpoint's. Who is `patient` waits for room as long as it takes."""
    made_from = {"recipe": dump(recipe), "student_sha256": subject.student_sha256}
    if folder.exists(manifest.NAME) and manifest.read(folder, "evaluate").items() >= made_from.items():
        return dict(json.loads(folder.read(SUMMARY)))
    count = require(recipe, prompt_folder)
    setup = _setup(subject, recipe, prompt_folder, folder)
    with ray_session(address):
        if not patient:
            wait_for_resources(evaluation_request(recipe.evaluation), recipe.train.resource_timeout_minutes, address)
        rows, scorers = work(setup, count, recipe.evaluation)
    figures.judge(rows)
    summary = figures.summarise(recipe, rows, scorers)
    _calibrate(recipe, summary, rows)
    _write(folder, recipe, summary, rows)
    _track(folder, summary, subject, tracking_uri)
    manifest.write(folder, "evaluate", **made_from)
    return summary


def require(recipe: Recipe, prompt_folder: Folder) -> int:
    """Refuse, before any image is made, what lacks its weights or its prompts; returns the number of pieces."""
    panel.require(recipe)
    return len(asks.pieces(recipe, prompt_folder))


def _recipe(text: str, overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        if not override.startswith("evaluation."):
            raise UserError(f"--set: {override!r} is not of the evaluation; allowed: evaluation.field=value")
    return parse(text, overrides)


def _calibrate(recipe: Recipe, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Add how far the judge of exclusion can be trusted, and what its counts are worth then."""
    options = recipe.evaluation
    if "exclusion_by_pair" in summary and options.calibration:
        calibration = pairs.ClipAttributes.load(options, "cpu").calibration(options.calibration)
        summary["calibration"] = {name: own.as_dict() for name, own in calibration.items()}
        exclusion.corrected(summary["exclusion_by_pair"], calibration, figures.selected(rows))


def _setup(subject: Subject, recipe: Recipe, prompt_folder: Folder, folder: Folder) -> Setup:
    return Setup(
        dump(recipe),
        str(models.teacher_folder(recipe.teacher, revision=recipe.revision)),
        subject.student.uri,
        (("student", subject.student_sha256), ("teacher", subject.teacher_sha256)),
        folder.uri,
        prompt_folder.uri,
    )


def _write(folder: Folder, recipe: Recipe, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema(rows)), buffer)
    folder.write(SCORES, buffer.getvalue())
    pictures = Pictures(folder, rows)
    png = io.BytesIO()
    pictures.sheet(summary).save(png, format="PNG")
    folder.write(SHEET, png.getvalue())
    folder.write(SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    folder.write(REPORT, write_report(recipe, summary, rows, pictures).encode())


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    """Of all columns that any row has; rows of different sets have different ones."""
    columns = {name: value for row in rows[::-1] for name, value in row.items() if value is not None}
    return pa.Table.from_pylist([columns]).schema


def _track(folder: Folder, summary: dict[str, Any], subject: Subject, tracking_uri: str) -> None:
    """Scores, sheet and report into the MLflow run that the student is of."""
    tracker = tracking.Tracker(tracking_uri, subject.mlflow_run)
    tracker.metrics(flat_metrics(summary), subject.step, 0)
    with TemporaryDirectory() as scratch:
        for name in (SHEET, REPORT):
            copy = Path(scratch) / name
            copy.write_bytes(folder.read(name))
            tracker.file(copy, f"evaluation/{subject.step:06d}")
        tracker.flush()


def flat_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Return the student's figures under names that MLflow can show; one that is no number is left out.

    Ray Train ranks checkpoints by them, and a NaN would stand above every score.
    """
    return {
        f"eval_{name}": metric["value"]
        for name, metric in summary["metrics"].items()
        if metric["images"] and math.isfinite(metric["value"])
    }


def distilled_student(student_folder: Folder) -> Sampler:
    """The student that `distill` left in this folder; its `model` is the teacher, whose other parts it shares."""
    recipe = parse(manifest.read(student_folder, "distill")["recipe"])
    folder = models.teacher_folder(recipe.teacher, revision=recipe.revision)
    teacher = Sampler(models.load(folder, start_timestep=recipe.method.start_timestep))
    return student_of(teacher, student_folder / "student")
