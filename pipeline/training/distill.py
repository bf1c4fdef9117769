"""From prepared prompts to a one-step student: the driver of a distillation."""

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    ValidationConfig,
)

from pipeline import manifest, models, tracking
from pipeline.errors import StorageError, TrainingError, UserError, again
from pipeline.hub import is_hub_id
from pipeline.prompts.encode import encode_cached, encoding_of
from pipeline.recipe import Recipe, Train, dump
from pipeline.redaction import redact
from pipeline.remote_errors import unwrap_remote_errors
from pipeline.resources import ResourceRequest, evaluation_request, training_request, wait_for_resources
from pipeline.session import ray_session
from pipeline.storage import Folder
from pipeline.training import identity, preflight
from pipeline.training.board import progress_bar
from pipeline.training.checkpoint import EMA_FILE, RAW_FILE
from pipeline.training.deepspeed_engine import ready_deepspeed
from pipeline.training.export import export
from pipeline.training.interrupt import InterruptibleTrainer
from pipeline.training.loop import Setup
from pipeline.training.progress import PREVIEW_TEXTS
from pipeline.training.restore import tidy
from pipeline.training.validation import RETRIES, Validation, validate
from pipeline.training.worker import train_loop

FAILURE_FILE = "failure.txt"
TRAIN_NAME = "train"


def distill(
    recipe: Recipe, prompt_folder: Folder, folder: Folder, tracking_uri: str, address: str | None = None
) -> dict[str, Any]:
    """Train, or continue, and write the student's diffusers folder; returns the manifest.

    The run's identity is its folder: called again on the same folder it continues from the last
    checkpoint, and a finished one is left as it is. Ray is started, or the cluster at `address` joined,
    only when all that it is to work on has been checked.

    Raises:
        UserError: where the folder holds a run of another recipe, teacher or prompts, or something is missing.
        TrainingError: where training diverged, or failed too often.
        KeyboardInterrupt: after a checkpoint of the step at which Ctrl-C was pressed, or after the last one.
    """
    if folder.has(manifest.NAME):
        return _finished(recipe, prompt_folder, folder)
    record, teacher, init = preflight.check(recipe, prompt_folder, folder)
    if not folder.has(manifest.RUN_FILE):  # a run that goes on writes to MLflow when it can
        tracking.require(tracking_uri)
    ready_deepspeed()
    with ray_session(address):
        for ask in _resource_requests(recipe):
            wait_for_resources(ask, recipe.train.resource_timeout_minutes, address)
        mlflow_run = _mlflow_run(recipe, record, teacher, folder, tracking_uri)
        fixed = _fixed(recipe, str(teacher), prompt_folder)
        setup = Setup(
            dump(recipe), str(teacher), str(init or ""), prompt_folder.uri, record, tracking_uri, mlflow_run, fixed
        )
        with progress_bar(recipe.train.steps) as board:
            validation = _validation(recipe, setup, folder, board) if recipe.evaluation.every_n_checkpoints else None
            try:
                result = _fit(recipe, {**asdict(setup), "board": board}, folder, validation)
            except TrainingError:
                _say_refusal(board)
                raise
            _say_refusal(board)
            diverged, interrupted = ray.get([board.why_stopped.remote(), board.stop_requested.remote()])
    if interrupted and not diverged and result.metrics["step"] < recipe.train.steps:
        raise KeyboardInterrupt
    if diverged:
        tracking.Tracker(tracking_uri, mlflow_run).finish("FAILED")
        raise TrainingError(
            f"training diverged: {diverged}; allowed: a lower student.learning_rate, or "
            'train.on_divergence = "rollback"'
        )
    record = _finish(recipe, folder, record, teacher, setup, result)
    if interrupted:  # during the last steps: the student is whole, and what would follow is not begun
        raise KeyboardInterrupt
    return record


def _resource_requests(recipe: Recipe) -> list[ResourceRequest]:
    """An evaluation beside the training may wait until it has ended: there need not be room for both at once."""
    training, evaluation = training_request(recipe.train), evaluation_request(recipe.evaluation)
    return [training, evaluation] if recipe.evaluation.every_n_checkpoints else [training]


def _say_refusal(board: Any) -> None:
    """A mistake that only a worker could find, such as a shard that has changed."""
    if mistake := ray.get(board.refused.remote()):
        raise UserError(mistake) from None


def _fixed(recipe: Recipe, teacher: str, prompts: Folder) -> bytes:
    """What the workers need encoded whatever their prompts, where they have no text encoder."""
    options = recipe.train
    if not options.num_encoders:
        return b""
    encode = ray.remote(num_cpus=options.cpus_per_encoder, num_gpus=options.gpus_per_encoder)(encode_cached)
    with unwrap_remote_errors():
        content: bytes = ray.get(encode.remote(encoding_of(recipe, teacher, prompts.uri, recipe.seed), PREVIEW_TEXTS))
    return content


def _finished(recipe: Recipe, prompt_folder: Folder, folder: Folder) -> dict[str, Any]:
    """Return the manifest of a finished run, which must be the one that is asked for."""
    record, state = manifest.read(folder, "distill"), identity.FINISHED
    identity.require_same_run(folder, record["recipe"], recipe, state)
    if prompt_folder.has(manifest.NAME):  # they may have been removed since
        prompts = manifest.read(prompt_folder, "prepare")["files"]
        identity.require_same_prompts(folder, record["prompts"], prompts, state)
    if not is_hub_id(recipe.teacher):
        found = manifest.folder_hash(models.teacher_folder(recipe.teacher, revision=recipe.revision))
        identity.require_same_teacher(folder, record["teacher_sha256"], found, recipe.teacher)
    return record


def _mlflow_run(recipe: Recipe, record: dict[str, Any], teacher: Path, folder: Folder, tracking_uri: str) -> str:
    """Return the MLflow run of this folder: the one it began with, or a new one."""
    sha256 = manifest.folder_hash(teacher)
    if folder.has(manifest.RUN_FILE):
        saved, state = json.loads(folder.read(manifest.RUN_FILE)), identity.BEGUN
        identity.require_same_run(folder, saved["recipe"], recipe, state)
        identity.require_same_prompts(folder, saved.get("prompts"), record["files"], state)
        identity.require_same_teacher(folder, saved.get("teacher_sha256", sha256), sha256, recipe.teacher)
        return str(saved["mlflow_run"])
    values = identity.flatten(recipe.values())
    shown = {name: redact(value) if isinstance(value, str) else value for name, value in values.items()}
    mlflow_run = tracking.create_run(tracking_uri, recipe.name, shown)
    begun = {"mlflow_run": mlflow_run, "recipe": dump(recipe), "prompts": record["files"], "teacher_sha256": sha256}
    folder.write(manifest.RUN_FILE, json.dumps(begun).encode())
    return mlflow_run


def _validation(recipe: Recipe, setup: Setup, folder: Folder, board: Any) -> ValidationConfig:
    """How Ray Train has checkpoints evaluated; the task itself waits for its actors and needs no core."""
    told = Validation(
        recipe_toml=setup.recipe_toml,
        teacher=setup.teacher_folder,
        teacher_sha256=manifest.folder_hash(Path(setup.teacher_folder)),
        init=setup.init_folder,
        prompts_uri=setup.prompts_uri,
        prompts=setup.prompts,
        folder=folder.uri,
        tracking_uri=setup.tracking_uri,
        mlflow_run=setup.mlflow_run,
    )
    return ValidationConfig(
        partial(validate, told=told, board=board),
        ray_remote_kwargs={"num_cpus": 0, "max_retries": RETRIES, "retry_exceptions": True},
    )


def _fit(recipe: Recipe, config: dict[str, Any], folder: Folder, validation: ValidationConfig | None = None) -> Result:
    train = recipe.train
    if tidy(folder / TRAIN_NAME):
        print("the list of checkpoints was damaged; those that are whole are looked for", flush=True)
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})
    trainer = InterruptibleTrainer(
        config["board"],
        train_loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=(train.min_workers, train.num_workers) if train.min_workers else train.num_workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=TRAIN_NAME,
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=FailureConfig(
                max_failures=train.max_failures,
                controller_failure_limit=_patience(train),
            ),
            checkpoint_config=_kept(recipe),
        ),
        validation_config=validation,
    )
    try:
        return trainer.fit()
    except SystemExit:  # Ray Train's answer to SIGINT, after it has stopped the workers
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise TrainingError(
            f"training stopped: {_cause(error, train)}; {_kept_traceback(folder, error)}; "
            f"{again()} to continue from the last checkpoint"
        ) from error


def _patience(train: Train) -> int:
    """In minutes: how long a run waits, in all, for machines that were lost. Ray Train counts each as a failure of its
    controller's, and would allow any number."""
    return math.ceil(train.resource_timeout_minutes) * (train.max_failures + 1)


def _kept(recipe: Recipe) -> CheckpointConfig:
    """The newest checkpoints, or the best of those that were evaluated beside the newest one."""
    rule = recipe.promotion
    if recipe.evaluation.student_selection == "latest":
        return CheckpointConfig(num_to_keep=recipe.train.num_to_keep)
    return CheckpointConfig(
        num_to_keep=recipe.train.num_to_keep,
        checkpoint_score_attribute=f"eval_{rule.metric}",
        checkpoint_score_order="max" if rule.higher_is_better else "min",
    )


def _chosen(recipe: Recipe, result: Result) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint that becomes the run's student, and its figures."""
    assert result.checkpoint is not None
    assert result.metrics is not None
    name, sign = f"eval_{recipe.promotion.metric}", 1 if recipe.promotion.higher_is_better else -1
    scored = [each for each in result.best_checkpoints or [] if math.isfinite(each[1].get(name, math.nan))]
    if recipe.evaluation.student_selection == "latest" or not scored:
        return result.checkpoint, result.metrics
    return max(scored, key=lambda each: sign * each[1][name])


def _cause(error: TrainingFailedError, train: Train) -> str:
    """The last line of the first failed worker's traceback, or of the controller's."""
    if type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
        return f"the cluster had no resources for {training_request(train)} in {_patience(train)} minutes"
    workers = getattr(error, "worker_failures", {})
    text = str(workers[min(workers)]) if workers else str(error)
    return text.strip().splitlines()[-1]


def _kept_traceback(folder: Folder, error: TrainingFailedError) -> str:
    """Where the whole of it is. A full disk or a store that is away may be what stopped training."""
    try:
        folder.write(FAILURE_FILE, redact(str(error)).encode())
    except StorageError as lost:
        return f"the traceback is lost: {lost}"
    return f"the traceback is in {folder.uri}/{FAILURE_FILE}"


def _finish(
    recipe: Recipe, folder: Folder, record: dict[str, Any], teacher: Path, setup: Setup, result: Result
) -> dict[str, Any]:
    """Export the moving average as a diffusers folder, the raw weights beside it, then write the manifest."""
    chosen, figures = _chosen(recipe, result)
    with chosen.as_directory() as checkpoint:
        hashes = {
            name: export(recipe, teacher, setup.init_folder, Path(checkpoint) / file, folder / name)
            for name, file in (("student", EMA_FILE), ("student-raw", RAW_FILE))
        }
    metrics = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    tracking.Tracker(setup.tracking_uri, setup.mlflow_run).finish()
    manifest.write(
        folder,
        "distill",
        recipe=dump(recipe),
        teacher=recipe.teacher,
        teacher_sha256=manifest.folder_hash(teacher),
        student_sha256=hashes["student"],
        student_raw_sha256=hashes["student-raw"],
        prompts=record["files"],
        mlflow_run=setup.mlflow_run,
        metrics=metrics,
    )
    return manifest.read(folder, "distill")
