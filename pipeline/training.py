"""The training loop of one Ray Train worker: the stream, the steps, the checkpoints."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint
from safetensors.torch import load_file, save_file

from pipeline import engines, models, recipe
from pipeline.distiller import Distiller
from pipeline.judges import Clip, load_decoder
from pipeline.progress import Progress
from pipeline.prompts import DATASET, NegativeSampler, batches
from pipeline.storage import Folder
from pipeline.tracking import Tracker

EMA_FILE, RAW_FILE = "ema.safetensors", "raw.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Setup:
    """What the driver tells the workers: plain data alone. `init_folder` may be empty."""

    recipe_toml: str
    teacher_folder: str
    init_folder: str
    prompts_uri: str
    tracking_uri: str
    mlflow_run: str


def train(config: dict[str, Any]) -> None:
    """One worker's run, from the latest checkpoint or from the start, to the recipe's last step."""
    board = config.pop("board")
    setup = Setup(**config)
    options = recipe.parse(setup.recipe_toml)
    distiller = _distiller(setup, options)
    first, last = _restore(distiller), options.train.steps
    tracker = Tracker(setup.tracking_uri, setup.mlflow_run) if distiller.rank == 0 else None
    progress = Progress(tracker, board, options, first)
    shard = ray.train.get_dataset_shard(DATASET)
    stream = batches(shard, options.train.batch_size, distiller.rank, distiller.world_size, first)
    for step, prompts in zip(range(first, last), stream, strict=False):
        metrics = distiller.step(step, prompts)
        progress.update(step, metrics)
        done = step + 1
        if done % options.train.checkpoint_every == 0 or done == last:
            progress.sheet(distiller, done)
            _checkpoint(distiller, done, metrics)


def _distiller(setup: Setup, options: recipe.Recipe) -> Distiller:
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    model = models.load(Path(setup.teacher_folder), device, start_timestep=options.method.start_timestep)
    init = models.load_denoiser(Path(setup.init_folder)) if setup.init_folder else None
    return Distiller(
        options,
        model,
        engines.build(options, model, device, workers=context.get_world_size(), init=init),
        NegativeSampler.read(Folder.of(setup.prompts_uri), avoid_contradictions=options.prompts.avoid_contradictions),
        Clip.load(options.train.clip_model, device) if options.train.clip_weight else None,
        load_decoder(options.train.clip_decoder, device) if options.train.clip_decoder else model.vae,
        context.get_world_rank(),
        context.get_world_size(),
    )


def _checkpoint(distiller: Distiller, step: int, metrics: dict[str, float]) -> None:
    """Every rank gives its part; Ray Train merges the parts and makes the whole visible at once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        distiller.engines.save(folder)
        if distiller.rank == 0:
            save_file(distiller.ema, folder / EMA_FILE)
            save_file(distiller.student_weights(), folder / RAW_FILE)
            (folder / STATE_FILE).write_text(json.dumps({"step": step}))
        ray.train.report({"step": step, **metrics}, checkpoint=Checkpoint.from_directory(folder))


def _restore(distiller: Distiller) -> int:
    """Load the latest checkpoint, if there is one; returns the first step to do."""
    latest = ray.train.get_checkpoint()
    if latest is None:
        return 0
    with latest.as_directory() as name:
        folder = Path(name)
        distiller.engines.load(folder)
        distiller.ema = load_file(folder / EMA_FILE)
        step = int(json.loads((folder / STATE_FILE).read_text())["step"])
    return step


__all__ = ["EMA_FILE", "RAW_FILE", "Setup", "train"]
