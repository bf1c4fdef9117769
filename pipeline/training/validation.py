"""Checkpoints that are evaluated and registered while training goes on, by a task of its own on its own resources.

Ray Train starts the task when the checkpoint is stored, one at a time, and again after a restart if it had not ended.
What it makes is named by the checkpoint's weights, so that a second task for the same checkpoint finds it done.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train import Checkpoint

from pipeline import manifest, models
from pipeline.evaluation.evaluate import Subject, evaluate_student, flat_metrics
from pipeline.recipe import Recipe, parse
from pipeline.registry.candidate import Candidate
from pipeline.registry.register import register
from pipeline.storage import Folder
from pipeline.training.checkpoint import EMA_FILE, STATE_FILE
from pipeline.training.export import export

VERSIONS = "versions"  # the folder of a run in which its checkpoints' students lie
RETRIES = 3


@dataclass(frozen=True)
class Validation:
    """What the driver tells the task. `folder` is the run's; `prompts` is their manifest."""

    recipe_toml: str
    teacher: str
    teacher_sha256: str
    init: str
    prompts_uri: str
    prompts: dict[str, Any]
    folder: str
    tracking_uri: str
    mlflow_run: str


def is_due(recipe: Recipe, step: int) -> bool:
    """Whether the checkpoint after so many steps is evaluated. The last one, unless others may be better, is not: it
    is the run's student, which `evaluate` and `register` are for."""
    every = recipe.evaluation.every_n_checkpoints * recipe.train.checkpoint_every_n_steps
    last = step == recipe.train.steps
    return bool(every) and (recipe.evaluation.student_selection == "best" if last else step % every == 0)


def validate(checkpoint: Checkpoint, told: Validation, board: Any) -> dict[str, float]:
    """Export the checkpoint's student, evaluate it, register it; returns its figures, which join the checkpoint."""
    recipe = parse(told.recipe_toml, ["evaluation.teacher_prompts=0"])  # not again for each checkpoint
    with checkpoint.as_directory() as local:
        subject = _exported(Path(local), told, recipe)
    place = subject.student.parent
    prompts = Folder.of(told.prompts_uri)
    summary = evaluate_student(subject, recipe, prompts, place / "evaluation", told.tracking_uri, patient=True)
    outcome = register(_candidate(subject, told), told.tracking_uri)
    manifest.write(place / "registered", "register", student_sha256=subject.student_sha256, **outcome)
    subject.student.delete()  # the version has it
    board.say.remote(f"step {subject.step}: version {outcome['version']} of {outcome['model']}: {outcome['decision']}")
    return flat_metrics(summary)


def _exported(checkpoint: Path, told: Validation, recipe: Recipe) -> Subject:
    step = int(json.loads((checkpoint / STATE_FILE).read_text())["step"])
    weights = checkpoint / EMA_FILE
    sha256 = manifest.file_hash(weights.read_bytes())
    place = Folder.of(told.folder) / VERSIONS / f"{step:06d}-{sha256[:12]}"
    if not place.has(manifest.NAME):
        teacher = models.local_or_download(told.teacher, recipe.teacher, revision=recipe.revision)
        init = str(models.local_or_download(told.init, recipe.student.init, "student.init")) if told.init else ""
        student = export(recipe, teacher, init, weights, place / "student")
        manifest.write(place, "student", step=step, ema_sha256=sha256, student_sha256=student)
    made = manifest.read(place, "student")
    return Subject(place / "student", made["student_sha256"], told.teacher_sha256, told.mlflow_run, step)


def _candidate(subject: Subject, told: Validation) -> Candidate:
    return Candidate(
        student=subject.student,
        student_sha256=subject.student_sha256,
        recipe=told.recipe_toml,
        teacher=parse(told.recipe_toml).teacher,
        teacher_sha256=told.teacher_sha256,
        prompts=told.prompts["files"],
        mlflow_run=told.mlflow_run,
        code=manifest.code_version(),
        step=subject.step,
        evaluation=subject.student.parent / "evaluation",
    )
