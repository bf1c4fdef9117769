"""What a run shows while it trains: a progress bar, metrics and contact sheets in MLflow. Rank 0 alone writes."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from ray.experimental import tqdm_ray

from nasa.backbone import decode
from nasa.student import generate
from pipeline.recipe import Recipe
from pipeline.sheet import contact_sheet, to_pixels
from pipeline.tracking import Tracker

if TYPE_CHECKING:
    from pipeline.training import Setup, Trainer

EVERY = 10  # steps between two writes to MLflow
SHEET_PROMPTS = 8
SHEET_SCALE = 0.5


class Progress:
    """Rank 0's bar and tracker; the other ranks' methods do nothing."""

    def __init__(self, setup: "Setup", recipe: Recipe, rank: int, first: int) -> None:
        self._active = rank == 0
        self._recipe, self._first, self._started = recipe, first, time.monotonic()
        if self._active:
            self._tracker = Tracker(setup.tracking_uri, setup.mlflow_run)
            self._bar: Any = tqdm_ray.tqdm(total=recipe.train.steps, desc="distil", unit="step")
            self._bar.update(first)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            self._bar.close()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        if not self._active:
            return
        pace = (step + 1 - self._first) / (time.monotonic() - self._started)
        rate = pace * self._recipe.global_batch
        left = (self._recipe.train.steps - step - 1) / pace
        self._bar.set_description(
            f"distil: loss {metrics['loss_student']:.4f}, {rate:.0f} images/s, {left / 60:.1f} min left"
        )
        self._bar.update(1)
        if (step + 1) % EVERY == 0:
            self._tracker.metrics({**metrics, "images_per_second": rate}, step + 1, int(time.time() * 1000))

    @torch.no_grad()
    def sheet(self, trainer: "Trainer", step: int) -> None:
        """Fixed prompts and seeds through the raw student, with and without a negative prompt, to MLflow."""
        if not self._active:
            return
        prompts = [f"a photo of a {shape}" for shape in ("shape", "star", "red shape", "ring on a blue background")]
        prompts = (prompts * SHEET_PROMPTS)[:SHEET_PROMPTS]
        noise = torch.randn((SHEET_PROMPTS, *trainer.model.latent_shape), generator=torch.Generator().manual_seed(7))
        embeds, away = trainer.model.encode(prompts), trainer.model.encode(["low quality"])
        rows = []
        for label, scale in (("no negative", 0.0), (f"NASA {SHEET_SCALE}: low quality", SHEET_SCALE)):
            inputs = [tensor.to(trainer.device) for tensor in (noise, embeds, away)]
            x0 = generate(trainer.engines.student.module, trainer.model.diffusion, *inputs, scale)
            rows.append((label, to_pixels(decode(trainer.model.vae, x0))))
        self._tracker.image(contact_sheet(rows, prompts), key="contact_sheet", step=step)
