"""The training loop of one Ray Train worker: the stream, the steps, the checkpoints."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from pipeline import models, recipe
from pipeline.errors import TransientError, UserError
from pipeline.lockfile import check_versions
from pipeline.models.clip.model import Clip, load_decoder
from pipeline.prompts.encode import Encoder, decode_cached, embeds_of, encoding_of
from pipeline.prompts.negatives import NegativeSampler
from pipeline.prompts.stream import Encoders, PromptStream
from pipeline.storage import Folder
from pipeline.tracking import Tracker
from pipeline.training import checkpoint, engines
from pipeline.training.distiller import Distiller
from pipeline.training.guard import DivergedError, Guard
from pipeline.training.interrupt import StopRequestedError
from pipeline.training.progress import PREVIEW_TEXTS, Progress
from pipeline.training.restore import restore, stored
from pipeline.training.validation import is_due

UPLOAD_WAITS = (1, 2, 4, 8, 16, 32, 64)  # seconds between tries


@dataclass(frozen=True)
class Setup:
    """What the driver tells the workers: plain data alone. `init_folder` may be empty, `prompts` is their manifest.

    `preview_embeds` are the `PREVIEW_TEXTS`, encoded, where the workers have no text encoder.
    """

    recipe_toml: str
    teacher_folder: str
    init_folder: str
    prompts_uri: str
    prompts: dict[str, Any]
    tracking_uri: str
    mlflow_run: str
    preview_embeds: bytes = b""


def train(config: dict[str, Any]) -> None:
    """One worker's run. A user's mistake fails it once: Ray Train starts it again, and it ends at once. A store that is
    away for too long is no such mistake."""
    board = config.pop("board")
    if ray.get(board.refused.remote()):
        return
    try:
        _run(Setup(**config), board)
    except TransientError:
        raise
    except UserError as error:
        ray.get(board.refuse.remote(str(error)))
        raise


def _run(setup: Setup, board: Any) -> None:
    """From the latest checkpoint or from the start, to the recipe's last step."""
    check_versions()
    options = recipe.parse(setup.recipe_toml)
    distiller = _distiller(setup, options)
    places = options.batch_slice(distiller.rank, distiller.world_size)
    prompts = PromptStream(Folder.of(setup.prompts_uri), setup.prompts, options.seed, options.train.batch_size, places)
    first = restore(distiller, ray.train.get_checkpoint(), board)
    tracker = Tracker(setup.tracking_uri, setup.mlflow_run) if distiller.rank == 0 else None
    progress = Progress(tracker, board, options, first, distiller.attempt)
    try:
        diverged = _train(distiller, prompts, first, progress)
    except StopRequestedError:
        stored()  # waits until the checkpoint that was just reported is
        progress.close()
        progress.stopped()
        return
    if diverged:
        progress.stop(diverged)
    elif options.evaluation.every_n_checkpoints:
        progress.note("evaluating the last checkpoints")
    progress.close()


def _train(distiller: Distiller, prompts: PromptStream, first: int, progress: Progress) -> str:
    """Train to the last step, rolled back where the recipe allows it; return why it diverged, or nothing."""
    options = distiller.recipe
    board = progress.board
    diverged = _steps(distiller, prompts, first, progress)
    while diverged and options.train.on_divergence == "rollback" and distiller.attempt < options.train.max_rollbacks:
        distiller.attempt += 1
        first = restore(distiller, stored(), board, attempt=distiller.attempt)
        if not first:
            break
        progress.begin(distiller.attempt)
        progress.say(f"{diverged}; back to step {first}, with other random numbers")
        diverged = _steps(distiller, prompts, first, progress)
    return diverged


def _steps(distiller: Distiller, prompts: PromptStream, first: int, progress: Progress) -> str:
    """Do the steps from `first` on; return why they diverged, or nothing.

    Raises:
        StopRequestedError: in all processes after the same step, whose checkpoint is on its way.
    """
    options = distiller.recipe.train
    encoders = _encoders(distiller, prompts.folder.uri)
    guard = Guard(options.max_grad_norm_ratio, options.min_image_std_ratio)
    stream = prompts.batches(first, options.steps, encoders)
    for step in range(first, options.steps):
        waited = time.monotonic()
        batch = next(stream)
        waited = time.monotonic() - waited
        encoded = embeds_of(batch.encoded, distiller.null.states.device) if batch.encoded else None
        metrics = distiller.step(step, batch.prompts, encoded)
        progress.update(step, metrics, waited)
        try:
            guard.check(step, metrics)
        except DivergedError as error:
            stream.close()
            return str(error)
        done = step + 1
        stopping = distiller.any_process(progress.stop_requested())
        if stopping or done % options.checkpoint_every_n_steps == 0 or done == options.steps:
            progress.sheet(distiller, done)
            _checkpoint(distiller, done, metrics)
        if stopping and done < options.steps:
            stream.close()
            raise StopRequestedError
    return ""


def _encoders(distiller: Distiller, prompts_uri: str) -> Encoders | None:
    """The recipe's, for the negatives that this attempt draws."""
    options = distiller.recipe.train
    if not options.num_encoders:
        return None
    encoding = encoding_of(distiller.recipe, str(distiller.model.folder), prompts_uri, distiller.seed)
    return Encoders(options.num_encoders, options.cpus_per_encoder, options.gpus_per_encoder, Encoder, encoding)


def _distiller(setup: Setup, options: recipe.Recipe) -> Distiller:
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    engines.check_workers(device)
    cached = decode_cached(PREVIEW_TEXTS, setup.preview_embeds, device) if setup.preview_embeds else {}
    folder = models.local_or_download(setup.teacher_folder, options.teacher, revision=options.revision)
    model = models.load(folder, device, start_timestep=options.method.start_timestep, cached_embeds=cached)
    init = None
    if setup.init_folder:
        init = models.load_denoiser(models.local_or_download(setup.init_folder, options.student.init, "student.init"))
    return Distiller(
        options,
        model,
        engines.build(options, model, device, workers=context.get_world_size(), init=init),
        NegativeSampler.read(Folder.of(setup.prompts_uri), avoid_contradictions=options.prompts.avoid_contradictions),
        Clip.load(options.train.clip_model, device) if options.train.clip_weight else None,
        load_decoder(options.train.clip_decoder, device) if options.train.clip_decoder else None,
        context.get_world_rank(),
        context.get_world_size(),
    )


def _checkpoint(distiller: Distiller, step: int, metrics: dict[str, float]) -> None:
    """Every rank gives its part and trains on; Ray Train makes the whole visible at once, when all parts are stored."""
    folder = tempfile.mkdtemp()
    checkpoint.save(distiller, Path(folder), step)
    ray.train.report(
        {"step": step, **metrics},
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
        checkpoint_upload_fn=_upload,
        validation=is_due(distiller.recipe, step),
    )


def _upload(local: Checkpoint, name: str) -> Checkpoint:
    """To the run's storage, again after a while where it fails: a failed upload would end the worker."""
    storage = ray.train.get_context().get_storage()
    for wait in (*UPLOAD_WAITS, None):
        try:
            return storage.persist_current_checkpoint(local, name)
        except OSError:
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError("unreachable")


__all__ = ["Setup", "train"]
