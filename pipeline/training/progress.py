"""Progress of a training run, reported by rank 0: the progress bar, metrics and images in MLflow."""

import resource
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
import torch

from nasa.diffusion import decode
from nasa.student import generate
from pipeline.evaluation.contact_sheet import contact_sheet, to_pixels
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

if TYPE_CHECKING:
    from pipeline.training.distiller import Distiller

LOG_EVERY_N_STEPS = 10
RATE_STEPS = 20  # recent steps that images/s is averaged over
SHEET_PROMPTS = ("a photo of a shape", "a photo of a star", "a photo of a red shape", "a photo of a ring")
SHEET_IMAGES = 8
SHEET_SCALE = 0.5
SHEET_NEGATIVE = "low quality"
PREVIEW_TEXTS = ("", SHEET_NEGATIVE, *SHEET_PROMPTS)


class ProgressReporter:
    """Reports rank 0's progress to the progress actor and to MLflow; on other ranks the methods do nothing."""

    def __init__(self, tracker: Tracker | None, actor: Any, recipe: Recipe, first: int, attempt: int = 0) -> None:
        self._tracker, self.actor, self._recipe = tracker, actor, recipe
        self._stop_requested: Any = None  # an object reference, resolved while a step is computed
        self._times = deque([time.monotonic()], maxlen=RATE_STEPS + 1)
        self._waits: deque[float] = deque(maxlen=RATE_STEPS)
        if tracker:
            tracker.watch_machine()
        self.begin_attempt(attempt)
        if tracker and first:
            actor.log.remote(f"resuming from the checkpoint at step {first} of {recipe.train.steps}")

    def begin_attempt(self, attempt: int) -> None:
        """Log this attempt's metrics after those that are already written; a rolled-back attempt stays beside it."""
        self._attempt = attempt
        if self._tracker is not None:
            self._tracker.skip_written("attempt", float(attempt))

    def stop_requested(self) -> bool:
        """Tell whether the driver was interrupted; False on other ranks. The answer may be one step late."""
        if self._tracker is None:
            return False
        answer = self._stop_requested is not None and bool(ray.get(self._stop_requested))
        self._stop_requested = self.actor.stop_requested.remote()
        return answer

    def set_checkpoint_stored(self) -> None:
        """Tell the driver that the checkpoint of an interrupted training is stored."""
        if self._tracker is not None:
            ray.get(self.actor.set_checkpoint_stored.remote())

    def log(self, message: str) -> None:
        """Print a line in the driver."""
        if self._tracker is not None:
            self.actor.log.remote(message)

    def set_status(self, status: str) -> None:
        """Show a text beside the full progress bar."""
        if self._tracker is not None:
            self.actor.update.remote(self._recipe.train.steps, status)

    def set_stop_reason(self, reason: str) -> None:
        """Tell the driver why training ended early."""
        if self._tracker is not None:
            ray.get(self.actor.set_stop_reason.remote(reason))

    def close(self) -> None:
        """Wait until everything is written to MLflow, for a limited time."""
        if self._tracker is not None:
            self._tracker.flush()

    def update(self, step: int, metrics: Mapping[str, float], waited: float) -> None:
        """Report a completed step; `waited` are the seconds that it waited for its prompts."""
        if self._tracker is None:
            return
        self._waits.append(waited)
        self._times.append(time.monotonic())
        rate = (len(self._times) - 1) * self._recipe.train.batch_size / (self._times[-1] - self._times[0])
        text = f"loss {metrics['loss_student']:.4f}, LoRA {metrics['loss_lora_teacher']:.4f}, {rate:.0f} images/s"
        self.actor.update.remote(step + 1, text)
        if (step + 1) % LOG_EVERY_N_STEPS == 0:
            system = {
                "images_per_second": rate,
                "data_wait_share": sum(self._waits) / (self._times[-1] - self._times[0]),
                "memory_gib": peak_memory() / 2**30,
                "attempt": float(self._attempt),
            }
            self._tracker.metrics({**metrics, **system}, step + 1, int(time.time() * 1000))

    @torch.no_grad()
    def sheet(self, distiller: "Distiller", step: int) -> None:
        """Fixed prompts and seeds through the raw student, with and without a negative prompt, to MLflow."""
        if self._tracker is None:
            return
        model, device = distiller.model, distiller.null.embeds.device
        prompts = (list(SHEET_PROMPTS) * SHEET_IMAGES)[:SHEET_IMAGES]
        noise = torch.randn((SHEET_IMAGES, *model.latent_shape), generator=torch.Generator().manual_seed(7))
        inputs = [part.to(device) for part in (noise, model.encode(prompts), model.encode([SHEET_NEGATIVE]))]
        rows = []
        for label, scale in (("no negative", 0.0), (f"NASA {SHEET_SCALE}: {SHEET_NEGATIVE}", SHEET_SCALE)):
            with distiller.precision():
                x0 = generate(distiller.engines.student.module, model.diffusion, *inputs, scale)
                images = decode(model.vae, x0)
            rows.append((label, to_pixels(images.float())))
        self._tracker.image(contact_sheet(rows, prompts), key="contact_sheet", step=step)


def peak_memory() -> int:
    """Return the peak memory of this process in bytes: of its GPU, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
