"""Evaluation and registration of checkpoints while training continues, in Ray Train's validation task.

Ray Train starts the task when a checkpoint is committed, one at a time, and again after a restart if it had not ended.
Outputs are named by the checkpoint's weights, so that a second task for the same checkpoint finds them.
"""

import json
from pathlib import Path
from typing import Literal

from ray.train import Checkpoint

from pipeline import manifest, models
from pipeline.evaluation.evaluate import EvaluatedStudent, collect_mlflow_metrics, evaluate_student
from pipeline.hashing import hash_file
from pipeline.manifest import Manifest
from pipeline.recipe import Recipe
from pipeline.registry.candidate import Candidate
from pipeline.registry.register import RegisteredManifest, register
from pipeline.storage import Folder
from pipeline.training.checkpoint import EMA_FILE, STATE_FILE
from pipeline.training.progress_actor import ProgressSink
from pipeline.training.student_export import export
from pipeline.training.train_loop_config import TrainLoopConfig

VERSIONS = "versions"  # folder of the students of a run's checkpoints
RETRIES = 3


class StudentManifest(Manifest):
    """The manifest of a checkpoint's exported student; `ema_sha256` is the hash of the checkpoint's EMA weights."""

    command = "distill"
    kind: Literal["student"] = "student"
    step: int
    ema_sha256: str
    student_sha256: str


def is_due(recipe: Recipe, step: int) -> bool:
    """Tell whether the checkpoint of this step is evaluated.

    The last one is the run's student, which `evaluate` and `register` handle, unless an earlier one may be better.
    """
    every = recipe.evaluation.every_n_checkpoints * recipe.train.checkpoint_every_n_steps
    last = step == recipe.train.steps
    return bool(every) and (recipe.evaluation.student_selection == "best" if last else step % every == 0)


def validate(
    checkpoint: Checkpoint, config: TrainLoopConfig, teacher_sha256: str, run_folder: Folder, actor: ProgressSink
) -> dict[str, float]:
    """Export a checkpoint's student, evaluate and register it; return its metrics, which Ray Train keeps with it."""
    evaluation = config.recipe.evaluation.model_copy(update={"teacher_prompts": 0})  # the teacher never changes
    recipe = config.recipe.model_copy(update={"evaluation": evaluation})
    with checkpoint.as_directory() as local:
        subject = _export_student(Path(local), config, teacher_sha256, run_folder)
    folder, prompts = subject.student.parent, Folder.from_uri(config.prompts_uri)
    summary = evaluate_student(subject, recipe, prompts, folder / "evaluation", config.tracking_uri, wait_for_ever=True)
    outcome = register(_build_candidate(subject, config), config.tracking_uri)
    manifest.write(
        folder / "registered", RegisteredManifest.from_outcome(subject.student_sha256, config.mlflow_run, outcome)
    )
    subject.student.delete()  # the registered version holds it
    actor.log.remote(f"step {subject.step}: {outcome}")
    return collect_mlflow_metrics(summary)


def _export_student(
    checkpoint: Path, config: TrainLoopConfig, teacher_sha256: str, run_folder: Folder
) -> EvaluatedStudent:
    recipe = config.recipe
    step = int(json.loads((checkpoint / STATE_FILE).read_text())["step"])
    weights = checkpoint / EMA_FILE
    sha256 = hash_file(weights)
    folder = run_folder / VERSIONS / f"{step:06d}-{sha256[:12]}"
    if not folder.exists(manifest.NAME):
        teacher = models.local_or_download(config.teacher_folder, recipe.teacher, revision=recipe.revision)
        init = config.init_folder and str(
            models.local_or_download(config.init_folder, recipe.student.init, "student.init")
        )
        student = export(recipe, teacher, init, weights, folder / "student")
        manifest.write(folder, StudentManifest(step=step, ema_sha256=sha256, student_sha256=student))
    student_sha256 = manifest.read(folder, StudentManifest).student_sha256
    return EvaluatedStudent(folder / "student", student_sha256, teacher_sha256, config.mlflow_run, step, recipe)


def _build_candidate(subject: EvaluatedStudent, config: TrainLoopConfig) -> Candidate:
    return Candidate(
        student=subject.student,
        student_sha256=subject.student_sha256,
        recipe=config.recipe,
        teacher_sha256=subject.teacher_sha256,
        prompts=config.prompts.files,
        mlflow_run=config.mlflow_run,
        code=manifest.get_code_version(),
        step=subject.step,
        evaluation=subject.student.parent / "evaluation",
    )
