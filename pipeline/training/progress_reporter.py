"""Progress of a training run, reported by rank 0: the progress bar, metrics and images in MLflow."""

import resource
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray
import torch

from pipeline.expected_curves import draw_expected_curves, read_expected_curves
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker
from pipeline.training.previews import draw_previews
from pipeline.training.progress_actor import ProgressSink
from pipeline.training.prometheus import TrainingGauges

if TYPE_CHECKING:
    from pipeline.training.distiller import Distiller

LOG_EVERY_N_STEPS = 10
RATE_STEPS = 20  # recent steps that images/s is averaged over


class ProgressReporter:
    """Reports rank 0's progress to the progress actor, MLflow and Prometheus; on other ranks the methods do nothing."""

    def __init__(
        self,
        tracker: Tracker | None,
        actor: ProgressSink,
        recipe: Recipe,
        first_step: int,
        attempt: int = 0,
        preview_prompts: Sequence[str] = (),
    ) -> None:
        self._tracker, self.actor, self._recipe = tracker, actor, recipe
        self._preview_prompts = preview_prompts
        self._stop_requested: Any = None  # an object reference, resolved while a step is computed
        self._times = deque([time.monotonic()], maxlen=RATE_STEPS + 1)
        self._waits: deque[float] = deque(maxlen=RATE_STEPS)
        self._gauges = TrainingGauges(tracker.run_id, recipe.name) if tracker else None
        self._expected = read_expected_curves(recipe) if tracker else None
        self._curves: dict[str, list[tuple[int, float]]] = {}
        self.begin_attempt(attempt)
        if tracker and first_step:
            actor.log.remote(f"resuming from the checkpoint at step {first_step} of {recipe.train.steps}")

    def begin_attempt(self, attempt: int) -> None:
        """Log this attempt's metrics after those already written; those of a rolled-back attempt stay."""
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
        """Fill the progress bar and show a text beside it."""
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
        if self._tracker is None or self._gauges is None:
            return
        self._waits.append(waited)
        self._times.append(time.monotonic())
        rate = (len(self._times) - 1) * self._recipe.train.batch_size / (self._times[-1] - self._times[0])
        text = f"loss {metrics['loss_student']:.4f}, LoRA {metrics['loss_lora_teacher']:.4f}, {rate:.0f} images/s"
        self.actor.update.remote(step + 1, text)
        system = {
            "images_per_second": rate,
            "data_wait_share": sum(self._waits) / (self._times[-1] - self._times[0]),
            "memory_gib": measure_peak_memory() / 2**30,
            "attempt": float(self._attempt),
        }
        progress = {"step": step + 1.0, "steps": float(self._recipe.train.steps)}
        self._gauges.report({**metrics, **system, **progress, "tracker_pending": float(self._tracker.num_pending)})
        if (step + 1) % LOG_EVERY_N_STEPS == 0:
            if self._expected is not None:
                for name, value in metrics.items():
                    self._curves.setdefault(name, []).append((step + 1, value))
            self._tracker.log_metrics({**metrics, **system}, step + 1, int(time.time() * 1000))

    def set_gauge(self, name: str, value: float) -> None:
        """Set one of the gauges of training."""
        if self._gauges is not None:
            self._gauges.report({name: value})

    def log_curves(self, step: int) -> None:
        """Log a figure of the curves since this process began, over those that are expected of the recipe."""
        if self._tracker is not None and self._expected is not None and self._curves:
            self._tracker.log_image(
                draw_expected_curves(self._recipe, self._expected, self._curves), key="expected_curves", step=step
            )

    def log_previews(self, distiller: "Distiller", step: int) -> None:
        """Log preview images of the student to MLflow under keys of each prompt; ranks that hold a shard help draw."""
        if self._tracker is None and not distiller.is_sharded:
            return
        for key, image in draw_previews(distiller, self._preview_prompts):
            if self._tracker is not None:
                self._tracker.log_image(image, key=key, step=step)


def measure_peak_memory() -> int:
    """Return this process's peak memory in bytes: GPU memory, or main memory without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
