"""The training loop of one Ray Train worker: prompt stream, steps, checkpoints."""

import socket
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from pipeline import logging_setup, models
from pipeline.compat import persist_checkpoint
from pipeline.errors import TransientError, UserError
from pipeline.lockfile import check_versions
from pipeline.models.clip.loss_model import Clip, load_decoder
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.prompt_stream import EncoderPool, PromptStream
from pipeline.prompts.teacher_pairs import read_pairs
from pipeline.prompts.text_encoding import TextEncoderActor, build_encoder_config, build_prompt_embeds, decode_cached
from pipeline.retry import iter_backoff_seconds
from pipeline.storage import Folder
from pipeline.tracking import Tracker
from pipeline.training import checkpoint, engines
from pipeline.training.checkpoint_restore import restore, wait_for_latest
from pipeline.training.checkpoint_validation import is_due
from pipeline.training.distiller import Distiller
from pipeline.training.divergence import DivergedError, DivergenceDetector
from pipeline.training.interruptible_trainer import StopRequestedError
from pipeline.training.previews import list_preview_texts
from pipeline.training.progress_actor import ProgressSink
from pipeline.training.progress_reporter import ProgressReporter
from pipeline.training.train_loop_config import TrainLoopConfig

UPLOAD_RETRIES = 8  # about two minutes


def train(config: TrainLoopConfig, actor: ProgressSink) -> None:
    """Train on one worker.

    A UserError is fatal: after Ray Train's restart the worker returns immediately. A TransientError is retried.
    """
    if ray.get(actor.get_user_error.remote()):
        return
    try:
        _train_to_last_step(config, actor)
    except TransientError:
        raise
    except UserError as error:
        ray.get(actor.set_user_error.remote(str(error)))
        raise


def _train_to_last_step(config: TrainLoopConfig, actor: ProgressSink) -> None:
    """Train from the latest checkpoint, or from the start, to the recipe's last step."""
    logging_setup.configure()
    check_versions()
    recipe = config.recipe
    distiller = _build_distiller(config)
    logging_setup.set_context(rank=distiller.rank, run=config.mlflow_run)
    indices = recipe.get_batch_slice(distiller.rank, distiller.world_size)
    folder = Folder.from_uri(config.prompts_uri)
    prompts = PromptStream(folder, config.prompts, recipe.seed, recipe.train.batch_size, indices)
    step = restore(distiller, ray.train.get_checkpoint(), actor)
    tracker = Tracker(config.tracking_uri, config.mlflow_run) if distiller.rank == 0 else None
    _watch_node(config, tracker)
    reporter = ProgressReporter(tracker, actor, recipe, step, distiller.attempt, config.preview_prompts)
    try:
        divergence = _train_with_rollbacks(distiller, prompts, step, reporter)
    except StopRequestedError:
        wait_for_latest()
        reporter.close()
        reporter.set_checkpoint_stored()
        return
    if divergence:
        reporter.set_stop_reason(divergence)
    elif recipe.evaluation.every_n_checkpoints:
        reporter.set_status("evaluating the last checkpoints")
    reporter.close()


def _watch_node(config: TrainLoopConfig, tracker: Tracker | None) -> None:
    """Log a node's system metrics from one of its workers, and its name as a tag."""
    context = ray.train.get_context()
    if context.get_local_rank() == 0:
        tracker, node = tracker or Tracker(config.tracking_uri, config.mlflow_run), f"node_{context.get_node_rank()}"
        tracker.set_tags({node: socket.gethostname()})
        tracker.watch_node(node)


def _train_with_rollbacks(
    distiller: Distiller, prompts: PromptStream, first_step: int, reporter: ProgressReporter
) -> str:
    """Train to the last step, rolling back if the recipe allows it; return why it diverged, or an empty string."""
    options = distiller.recipe.train
    divergence = _train_steps(distiller, prompts, first_step, reporter)
    while divergence and options.on_divergence == "rollback" and distiller.attempt < options.max_rollbacks:
        distiller.attempt += 1
        first_step = restore(distiller, wait_for_latest(), reporter.actor, attempt=distiller.attempt)
        if not first_step:
            break
        reporter.begin_attempt(distiller.attempt)
        reporter.log(f"{divergence}; rolled back to step {first_step}, with other random numbers")
        divergence = _train_steps(distiller, prompts, first_step, reporter)
    return divergence


def _train_steps(distiller: Distiller, prompts: PromptStream, first_step: int, reporter: ProgressReporter) -> str:
    """Train from `first_step` on; return why training diverged, or an empty string.

    Raises:
        StopRequestedError: on all ranks after the same step, whose checkpoint is being uploaded.
    """
    options = distiller.recipe.train
    detector = DivergenceDetector(options.max_grad_norm_ratio, options.min_image_std_ratio)
    stream = prompts.iter_batches(first_step, options.steps, _build_encoders(distiller, prompts.folder.uri))
    for step in range(first_step, options.steps):
        logging_setup.set_context(step=step)
        started = time.monotonic()
        batch = next(stream)
        waited = time.monotonic() - started
        encoded = build_prompt_embeds(batch.encoded, distiller.null.embeds.device) if batch.encoded else None
        metrics = distiller.step(step, batch.prompts, encoded)
        reporter.update(step, metrics, waited)
        try:
            detector.check(step, metrics)
        except DivergedError as error:
            stream.close()
            return str(error)
        done = step + 1
        stopping = distiller.any_across_ranks(reporter.stop_requested())
        if stopping or done % options.checkpoint_every_n_steps == 0 or done == options.steps:
            reporter.log_previews(distiller, done)
            reporter.log_curves(done)
            _report_checkpoint(distiller, done, metrics, reporter)
        if stopping and done < options.steps:
            stream.close()
            raise StopRequestedError
    return ""


def _build_encoders(distiller: Distiller, prompts_uri: str) -> EncoderPool | None:
    """Return the recipe's text encoders, which also sample this attempt's negative prompts."""
    options = distiller.recipe.train
    if not options.num_encoders:
        return None
    pairs_uri = (distiller.recipe.regression.pairs or distiller.pairs.uri) if distiller.pairs else ""
    encoding = build_encoder_config(
        distiller.recipe, str(distiller.model.folder), prompts_uri, distiller.seed, pairs_uri
    )
    return EncoderPool(
        options.num_encoders, options.cpus_per_encoder, options.gpus_per_encoder, TextEncoderActor, encoding
    )


def _build_distiller(config: TrainLoopConfig) -> Distiller:
    options = config.recipe
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    engines.check_workers(device)
    cached_embeds = (
        decode_cached(list_preview_texts(config.preview_prompts), config.cached_embeds, device)
        if config.cached_embeds
        else {}
    )
    folder = models.local_or_download(config.teacher_folder, options.teacher, revision=options.revision)
    model = models.load_for_recipe(options, folder, cached_embeds=cached_embeds)  # engines move it to the device
    model = replace(model, diffusion=model.diffusion.to(device))
    init = None
    if config.init_folder:
        init = models.load_denoiser(models.local_or_download(config.init_folder, options.student.init, "student.init"))
    has_decoder = options.train.clip_weight and options.train.clip_decoder
    return Distiller(
        options,
        model,
        engines.build_engines(options, model, device, workers=context.get_world_size(), init=init),
        NegativeSampler.read(
            Folder.from_uri(config.prompts_uri), avoid_contradictions=options.prompts.avoid_contradictions
        ),
        Clip.load(options.train.clip_model, device) if options.train.clip_weight else None,
        load_decoder(options.train.clip_decoder, device) if has_decoder else None,
        read_pairs(options, config.pairs_uri),
        context.get_world_rank(),
        context.get_world_size(),
    )


def _report_checkpoint(distiller: Distiller, step: int, metrics: dict[str, float], reporter: ProgressReporter) -> None:
    """Save this rank's part and train on; Ray Train commits the checkpoint when all ranks' parts are uploaded."""
    started, folder = time.monotonic(), tempfile.mkdtemp()
    checkpoint.save(distiller, Path(folder), step)
    ray.train.report(
        {"step": step, **metrics},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=partial(_upload, reporter=reporter),
        validation=is_due(distiller.recipe, step),
    )
    reporter.set_gauge("checkpoint_seconds", time.monotonic() - started)


def _upload(local: Checkpoint, name: str, reporter: ProgressReporter) -> Checkpoint:
    """Upload to the run's storage, and report how long it took."""
    started = time.monotonic()
    stored = _upload_with_retries(local, name)
    reporter.set_gauge("upload_seconds", time.monotonic() - started)
    return stored


def _upload_with_retries(local: Checkpoint, name: str) -> Checkpoint:
    """Upload again after a failure, which would end the worker."""
    storage = ray.train.get_context().get_storage()
    for delay in iter_backoff_seconds(UPLOAD_RETRIES):
        try:
            return persist_checkpoint(storage, local, name)
        except OSError:
            time.sleep(delay)
    return persist_checkpoint(storage, local, name)
