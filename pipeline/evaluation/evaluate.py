"""Evaluation of a student: fixed prompts and seeds, scores, a summary, a contact sheet and a report."""

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pipeline import logged_models, manifest, models, tracking
from pipeline.errors import StorageError, invalid
from pipeline.evaluation import aggregate, datasets, exclusion
from pipeline.evaluation.diversity import add_diversity
from pipeline.evaluation.html_report import write_report
from pipeline.evaluation.image_store import ImageStore
from pipeline.evaluation.judges import clip_attributes
from pipeline.evaluation.results import SUMMARY, EvaluationRow, Summary, read_summary, write_rows
from pipeline.evaluation.sampling import Sampler
from pipeline.evaluation.suites import build_suite
from pipeline.evaluation.worker import WorkerConfig, load_student_sampler, plan_work_units, run_workers
from pipeline.expected_curves import draw_expected_curves, read_expected_curves
from pipeline.logged_models import TrainedStudent
from pipeline.manifest import DistilledManifest, Manifest
from pipeline.ray_session import start_ray_session
from pipeline.recipe import Recipe, dump, parse
from pipeline.resource_requests import build_evaluation_request, wait_for_resources
from pipeline.storage import Folder

logger = logging.getLogger(__name__)
SHEET, REPORT = "contact_sheet.png", "report.html"


class EvaluationManifest(Manifest):
    """The manifest of an evaluation: its recipe and the student's hash."""

    command = "evaluate"
    kind: Literal["evaluate"] = "evaluate"
    recipe: Recipe
    student_sha256: str


@dataclass(frozen=True)
class EvaluatedStudent:
    """A student to evaluate: its diffusers folder, the hashes of both models, its training run and step, its recipe."""

    student: Folder
    student_sha256: str
    teacher_sha256: str
    mlflow_run: str
    step: int
    recipe: Recipe

    @staticmethod
    def from_distilled(folder: Folder, run: DistilledManifest) -> "EvaluatedStudent":
        """Return the student that `distill` wrote."""
        return EvaluatedStudent(
            folder / "student", run.student_sha256, run.teacher_sha256, run.mlflow_run, run.step, run.recipe
        )

    @property
    def trained(self) -> TrainedStudent:
        """The student as MLflow's logged model knows it."""
        return TrainedStudent(self.mlflow_run, self.step, self.student_sha256, self.recipe)


def evaluate(
    student_folder: Folder,
    prompt_folder: Folder,
    folder: Folder,
    tracking_uri: str,
    overrides: Sequence[str] = (),
    ray_address: str | None = None,
) -> Summary:
    """Write `scores.parquet`, `summary.json`, `contact_sheet.png`, `report.html` and the manifest.

    `overrides` change the recipe's `evaluation` section. A finished evaluation of the same student is returned; an
    interrupted one resumes.
    """
    run = manifest.read(student_folder, DistilledManifest)
    recipe = _apply_overrides(run.recipe, overrides)
    subject = EvaluatedStudent.from_distilled(student_folder, run)
    return evaluate_student(subject, recipe, prompt_folder, folder, tracking_uri, ray_address)


def evaluate_student(
    subject: EvaluatedStudent,
    recipe: Recipe,
    prompt_folder: Folder,
    folder: Folder,
    tracking_uri: str,
    ray_address: str | None = None,
    *,
    wait_for_ever: bool = False,
) -> Summary:
    """Evaluate any student by `recipe`; `wait_for_ever` waits for resources without a limit."""
    if folder.exists(manifest.NAME) and _matches(manifest.read(folder, EvaluationManifest), subject, recipe):
        return read_summary(folder)
    count = check_inputs(recipe, prompt_folder)
    config = _build_worker_config(subject, recipe, prompt_folder, folder)
    with start_ray_session(ray_address):
        if not wait_for_ever:
            wait_for_resources(
                build_evaluation_request(recipe.evaluation), recipe.train.resource_timeout_minutes, ray_address
            )
        rows, scorers = run_workers(config, count, recipe.evaluation)
    rows = add_diversity([aggregate.add_judged_metrics(row) for row in rows])
    summary = _correct_for_judge_errors(recipe, aggregate.summarise(recipe, rows, scorers), rows)
    _write_results(folder, recipe, summary, rows, _draw_curves(subject, recipe, summary, tracking_uri))
    _log_to_mlflow(folder, summary, subject, recipe, prompt_folder, tracking_uri)
    manifest.write(folder, EvaluationManifest(recipe=recipe, student_sha256=subject.student_sha256))
    return summary


def check_inputs(recipe: Recipe, prompt_folder: Folder) -> int:
    """Check weights and prompts before any image is sampled; return the number of work units."""
    build_suite(recipe).check()
    return len(plan_work_units(recipe, prompt_folder))


def _apply_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    for override in overrides:
        if not override.startswith("evaluation."):
            raise invalid("--set", override, "evaluation.field=value")
    return parse(dump(recipe), overrides)


def _matches(finished: EvaluationManifest, subject: EvaluatedStudent, recipe: Recipe) -> bool:
    return finished.recipe == recipe and finished.student_sha256 == subject.student_sha256


def _correct_for_judge_errors(recipe: Recipe, summary: Summary, rows: Sequence[EvaluationRow]) -> Summary:
    """Return the summary with the judge's accuracy on labelled images, and the shares corrected for its errors."""
    options = recipe.evaluation
    if not summary.exclusion_by_pair or not options.calibration:
        return summary
    calibration = clip_attributes.ClipAttributes.load(options, "cpu").measure_accuracy(options.calibration)
    selected = aggregate.compute_selected_shares(rows)
    pairs = tuple(exclusion.correct_for_judge_errors(pair, calibration, selected) for pair in summary.exclusion_by_pair)
    return summary.model_copy(update={"calibration": calibration, "exclusion_by_pair": pairs})


def _build_worker_config(
    subject: EvaluatedStudent, recipe: Recipe, prompt_folder: Folder, folder: Folder
) -> WorkerConfig:
    return WorkerConfig(
        recipe,
        str(models.find_teacher_folder(recipe.teacher, revision=recipe.revision)),
        subject.student.uri,
        (("student", subject.student_sha256), ("teacher", subject.teacher_sha256)),
        folder.uri,
        prompt_folder.uri,
    )


def _draw_curves(subject: EvaluatedStudent, recipe: Recipe, summary: Summary, tracking_uri: str) -> bytes:
    """Return a PNG of the training run's curves over those that are expected; empty bytes without either."""
    expected = read_expected_curves(recipe)
    if expected is None:
        return b""
    scores = {name: metric.value for name, metric in summary.metrics.items()}
    try:
        own = tracking.read_curves(
            tracking_uri, subject.mlflow_run, [name for name in expected.bands if name not in scores]
        )
    except StorageError as error:
        logger.warning("the report has no curves of training: %s", error)
        return b""
    png = io.BytesIO()
    points = {name: [(subject.step, value)] for name, value in scores.items()}
    draw_expected_curves(recipe, expected, own | points).save(png, format="PNG")
    return png.getvalue()


def _write_results(
    folder: Folder, recipe: Recipe, summary: Summary, rows: Sequence[EvaluationRow], curves: bytes
) -> None:
    write_rows(folder, rows)
    images = ImageStore(folder, rows)
    png = io.BytesIO()
    images.draw_sheet(summary).save(png, format="PNG")
    folder.write(SHEET, png.getvalue())
    folder.write_json(SUMMARY, summary.to_dict())
    folder.write(REPORT, write_report(recipe, summary, rows, images, curves).encode())


def _log_to_mlflow(
    folder: Folder,
    summary: Summary,
    subject: EvaluatedStudent,
    recipe: Recipe,
    prompt_folder: Folder,
    tracking_uri: str,
) -> None:
    """Log scores, datasets, contact sheet and report to the student's training run and logged model in MLflow."""
    tracker = tracking.Tracker(tracking_uri, subject.mlflow_run)
    scores, dataset = collect_mlflow_metrics(summary), datasets.get_evaluation_dataset(recipe, prompt_folder)
    tracker.log_datasets([each.to_input() for each in (dataset, *datasets.list_benchmarks(recipe, prompt_folder))])
    tracker.write(
        lambda client: logged_models.log_scores(client, subject.trained, scores, dataset.name, dataset.digest)
    )
    with TemporaryDirectory() as scratch:
        for name in (SHEET, REPORT):
            copy = Path(scratch) / name
            copy.write_bytes(folder.read(name))
            tracker.log_file(copy, f"evaluation/{subject.step:06d}")
        tracker.flush()


def collect_mlflow_metrics(summary: Summary) -> dict[str, float]:
    """Return the student's metrics by MLflow names, without NaN.

    Ray Train ranks checkpoints by them, and a NaN would stand above every score.
    """
    return {
        f"eval_{name}": metric.value
        for name, metric in summary.metrics.items()
        if metric.images and math.isfinite(metric.value)
    }


def load_distilled_student(student_folder: Folder) -> Sampler:
    """Return the student that `distill` wrote; its `model` is the teacher, whose other parts it shares."""
    recipe = manifest.read(student_folder, DistilledManifest).recipe
    folder = models.find_teacher_folder(recipe.teacher, revision=recipe.revision)
    teacher = Sampler(models.load_for_evaluation(recipe, folder))
    return load_student_sampler(teacher, student_folder / "student")
