"""The driver of a distillation: from prepared prompts to a one-step student."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    Result,
    RunConfig,
    TrainingFailedError,
    ValidationConfig,
)

from pipeline import manifest, models, tracking
from pipeline.compat import build_failure_config, build_scaling_config, is_startup_timeout
from pipeline.errors import StorageError, TrainingDivergedError, TrainingError, UserError, resume_hint
from pipeline.hashing import hash_folder
from pipeline.manifest import DistilledManifest
from pipeline.model_download import is_hub_id
from pipeline.notifications import FailureReport, report_failure
from pipeline.prompts.prompt_dataset import PromptsManifest
from pipeline.prompts.text_encoding import build_encoder_config, encode_cached
from pipeline.ray_session import start_ray_session
from pipeline.recipe import Recipe, Train
from pipeline.redaction import redact
from pipeline.remote_errors import unwrap_remote_errors
from pipeline.resource_requests import (
    ResourceRequest,
    build_evaluation_request,
    build_ray_resources,
    build_training_request,
    wait_for_resources,
)
from pipeline.storage import Folder
from pipeline.training import preflight, run_identity
from pipeline.training.checkpoint import EMA_FILE, RAW_FILE
from pipeline.training.checkpoint_restore import remove_uncommitted_checkpoints
from pipeline.training.checkpoint_validation import RETRIES, validate
from pipeline.training.deepspeed_engine import prepare_deepspeed
from pipeline.training.interruptible_trainer import InterruptibleTrainer
from pipeline.training.mlflow_run import log_datasets, resume_or_create_mlflow_run
from pipeline.training.pair_sampling import locate_pairs, sample_pairs
from pipeline.training.previews import choose_preview_prompts, list_preview_texts
from pipeline.training.process_group import NodeAddressTorchConfig
from pipeline.training.progress_actor import ProgressSink, show_progress
from pipeline.training.student_export import export
from pipeline.training.train_loop_config import TrainLoopConfig
from pipeline.training.worker_entry import train_loop

FAILURE_FILE = "failure.txt"
TRAIN_NAME = "train"


def distill(
    recipe: Recipe, prompt_folder: Folder, folder: Folder, tracking_uri: str, address: str | None = None
) -> DistilledManifest:
    """Train a student, or resume, and write its diffusers folder; return the manifest.

    The folder identifies the run: a second call resumes from the last checkpoint, and leaves a finished run as it is.
    Ray is started, or the cluster at `address` joined, after all inputs are checked.

    Raises:
        UserError: if the folder holds a run of another recipe, teacher or prompts, or an input is missing.
        TrainingError: if training diverged, or failed more often than the recipe allows.
        KeyboardInterrupt: on Ctrl-C, after the current step's checkpoint is stored.
    """
    if folder.exists(manifest.NAME):
        return _load_finished(recipe, prompt_folder, folder)
    with report_failure(recipe, tracking_uri) as report:
        return _distill(recipe, prompt_folder, folder, tracking_uri, address, report)


def _distill(
    recipe: Recipe,
    prompt_folder: Folder,
    folder: Folder,
    tracking_uri: str,
    address: str | None,
    report: FailureReport,
) -> DistilledManifest:
    """Train a student and write its folder; `report` is told the MLflow run."""
    prompts, teacher, init = preflight.check(recipe, prompt_folder, folder)
    if not folder.exists(manifest.RUN_FILE):  # a resumed run writes to MLflow once it answers
        tracking.require_reachable(tracking_uri)
    prepare_deepspeed()
    with start_ray_session(address):
        for request in _build_resource_requests(recipe):
            wait_for_resources(request, recipe.train.resource_timeout_minutes, address)
        pairs_uri = _ensure_pairs(recipe, prompt_folder, prompts, teacher)
        mlflow_run = resume_or_create_mlflow_run(recipe, prompts, teacher, folder, tracking_uri)
        report.mlflow_run = mlflow_run
        log_datasets(prompts, prompt_folder, tracking_uri, mlflow_run)
        previews = choose_preview_prompts(recipe, prompt_folder)
        cached_embeds = _encode_previews(recipe, str(teacher), prompt_folder, previews)
        config = TrainLoopConfig(
            recipe,
            teacher_folder=str(teacher),
            init_folder=str(init or ""),
            prompts_uri=prompt_folder.uri,
            prompts=prompts,
            tracking_uri=tracking_uri,
            mlflow_run=mlflow_run,
            preview_prompts=previews,
            cached_embeds=cached_embeds,
            pairs_uri=pairs_uri,
        )
        with show_progress(recipe.train.steps) as actor:
            validation = (
                _build_validation_config(config, folder, actor) if recipe.evaluation.every_n_checkpoints else None
            )
            try:
                result = _fit(config, actor, folder, validation)
            except TrainingError:
                _raise_user_error(actor)
                raise
            _raise_user_error(actor)
            divergence, interrupted = ray.get([actor.stop_reason.remote(), actor.stop_requested.remote()])
    if interrupted and not divergence and (result.metrics or {})["step"] < recipe.train.steps:
        raise KeyboardInterrupt
    if divergence:
        tracking.Tracker(tracking_uri, mlflow_run).finish("FAILED")
        raise TrainingDivergedError(
            f'training diverged: {divergence}. Lower student.learning_rate, or set train.on_divergence = "rollback".'
        )
    distilled = _export_student(config, folder, teacher, result)
    if interrupted:  # after the last step: the student is complete, and the next command is not started
        raise KeyboardInterrupt
    return distilled


def _ensure_pairs(recipe: Recipe, prompt_folder: Folder, prepared: PromptsManifest, teacher: Path) -> str:
    """Sample the regression's pairs unless they are given; return their folder, or an empty string without one."""
    if not recipe.regression.weight:
        return ""
    if recipe.regression.pairs:
        return recipe.regression.pairs
    folder = locate_pairs(recipe, prompt_folder, hash_folder(teacher))
    sample_pairs(recipe, prompt_folder, prepared, folder, teacher)
    return folder.uri


def _build_resource_requests(recipe: Recipe) -> list[ResourceRequest]:
    """Return the resource requests that must each fit alone: an evaluation may wait until training has ended."""
    training, evaluation = build_training_request(recipe.train), build_evaluation_request(recipe.evaluation)
    return [training, evaluation] if recipe.evaluation.every_n_checkpoints else [training]


def _raise_user_error(actor: ProgressSink) -> None:
    """Raise the UserError that a worker met, such as a shard that has changed."""
    if message := ray.get(actor.get_user_error.remote()):
        raise UserError(message) from None


def _encode_previews(recipe: Recipe, teacher: str, prompt_folder: Folder, previews: Sequence[str]) -> bytes:
    """Return the encoded texts of the previews if the workers have no text encoder."""
    options = recipe.train
    if not options.num_encoders:
        return b""
    encode = ray.remote(num_cpus=options.cpus_per_encoder, num_gpus=options.gpus_per_encoder)(encode_cached)
    encoding = build_encoder_config(recipe, teacher, prompt_folder.uri, recipe.seed)
    with unwrap_remote_errors():
        content: bytes = ray.get(encode.remote(encoding, list_preview_texts(previews)))
    return content


def _load_finished(recipe: Recipe, prompt_folder: Folder, folder: Folder) -> DistilledManifest:
    """Return the manifest of a finished run, which must be the one that is requested."""
    distilled, state = manifest.read(folder, DistilledManifest), run_identity.FINISHED
    run_identity.require_same_run(folder, distilled.recipe, recipe, state)
    if prompt_folder.exists(manifest.NAME):  # the prompts may have been deleted since
        prompts = manifest.read(prompt_folder, PromptsManifest).files
        run_identity.require_same_prompts(folder, distilled.prompts, prompts, state)
    if not is_hub_id(recipe.teacher):
        sha256 = hash_folder(models.find_teacher_folder(recipe.teacher, revision=recipe.revision))
        run_identity.require_same_teacher(folder, distilled.teacher_sha256, sha256, recipe.teacher)
    return distilled


def _build_validation_config(config: TrainLoopConfig, folder: Folder, actor: ProgressSink) -> ValidationConfig:
    """Return how Ray Train evaluates checkpoints; the task only waits for its actors and needs no CPU."""
    sha256 = hash_folder(Path(config.teacher_folder))
    return ValidationConfig(
        partial(validate, config=config, teacher_sha256=sha256, run_folder=folder, actor=actor),
        ray_remote_kwargs={"num_cpus": 0, "max_retries": RETRIES, "retry_exceptions": True},
    )


def _fit(config: TrainLoopConfig, actor: ProgressSink, folder: Folder, validation: ValidationConfig | None) -> Result:
    train = config.recipe.train
    if remove_uncommitted_checkpoints(folder / TRAIN_NAME):
        print("Ray Train's checkpoint snapshot was corrupt; looking for intact checkpoints", flush=True)
    trainer = InterruptibleTrainer(
        actor,
        train_loop,
        train_loop_config={"config": config, "actor": actor},
        torch_config=NodeAddressTorchConfig(),
        scaling_config=build_scaling_config(
            train.num_workers,
            train.min_workers,
            use_gpu=train.gpus_per_worker > 0,
            resources_per_worker=build_ray_resources(train.cpus_per_worker, train.gpus_per_worker),
        ),
        run_config=RunConfig(
            name=TRAIN_NAME,
            storage_path=folder.path,
            storage_filesystem=folder.filesystem,
            failure_config=build_failure_config(train.max_failures, _count_startup_timeouts(train)),
            checkpoint_config=_build_checkpoint_config(config.recipe),
        ),
        validation_config=validation,
    )
    try:
        return trainer.fit()
    except SystemExit:  # Ray Train's answer to SIGINT, after it has stopped the workers
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise TrainingError(
            f"training stopped: {_find_failure_cause(error, train)}; {_save_traceback(folder, error)}; "
            f"{resume_hint()} to continue from the last checkpoint"
        ) from error


def _count_startup_timeouts(train: Train) -> int:
    """Return how many startup timeouts, of one minute each, a run may have in all.

    Ray Train counts each minute without resources as a failure of its controller, and by default allows any number.
    """
    return math.ceil(train.resource_timeout_minutes) * (train.max_failures + 1)


def _build_checkpoint_config(recipe: Recipe) -> CheckpointConfig:
    """Return which checkpoints are kept: the newest, or the best evaluated ones and the newest."""
    rule = recipe.promotion
    if recipe.evaluation.student_selection == "latest":
        return CheckpointConfig(num_to_keep=recipe.train.num_to_keep)
    return CheckpointConfig(
        num_to_keep=recipe.train.num_to_keep,
        checkpoint_score_attribute=f"eval_{rule.metric}",
        checkpoint_score_order="max" if rule.higher_is_better else "min",
    )


def _select_checkpoint(recipe: Recipe, result: Result) -> tuple[Checkpoint, dict[str, Any]]:
    """Return the checkpoint that becomes the run's student, and its metrics."""
    assert result.checkpoint is not None
    assert result.metrics is not None
    name, sign = f"eval_{recipe.promotion.metric}", 1 if recipe.promotion.higher_is_better else -1
    scored = [each for each in result.best_checkpoints or [] if math.isfinite(each[1].get(name, math.nan))]
    if recipe.evaluation.student_selection == "latest" or not scored:
        return result.checkpoint, result.metrics
    return max(scored, key=lambda each: sign * each[1][name])


def _find_failure_cause(error: TrainingFailedError, train: Train) -> str:
    """Return the last line of the first failed worker's traceback, or of the controller's."""
    if is_startup_timeout(error):
        minutes = _count_startup_timeouts(train)
        return f"the cluster had no resources for {build_training_request(train)} in {minutes} minutes"
    workers = getattr(error, "worker_failures", {})
    text = str(workers[min(workers)]) if workers else str(error)
    return text.strip().splitlines()[-1]


def _save_traceback(folder: Folder, error: TrainingFailedError) -> str:
    """Save the traceback and return where; a full disk or a failed store may have stopped training."""
    try:
        folder.write(FAILURE_FILE, redact(str(error)).encode())
    except StorageError as lost:
        return f"the traceback is lost: {lost}"
    return f"the traceback is in {folder.uri}/{FAILURE_FILE}"


def _export_student(config: TrainLoopConfig, folder: Folder, teacher: Path, result: Result) -> DistilledManifest:
    """Export the EMA weights as a diffusers folder, the raw weights beside it, then write the manifest."""
    recipe = config.recipe
    selected, metrics = _select_checkpoint(recipe, result)
    with selected.as_directory() as checkpoint:
        hashes = {
            name: export(recipe, teacher, config.init_folder, Path(checkpoint) / file, folder / name)
            for name, file in (("student", EMA_FILE), ("student-raw", RAW_FILE))
        }
    tracking.Tracker(config.tracking_uri, config.mlflow_run).finish()
    distilled = DistilledManifest(
        recipe=recipe,
        teacher_sha256=hash_folder(teacher),
        student_sha256=hashes["student"],
        student_raw_sha256=hashes["student-raw"],
        prompts=config.prompts.files,
        mlflow_run=config.mlflow_run,
        metrics={name: value for name, value in metrics.items() if isinstance(value, int | float)},
    )
    manifest.write(folder, distilled)
    return distilled
