"""What rank 0 tells of a run while it trains: the board's figures, metrics and contact sheets in MLflow."""

import resource
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray
import torch

from nasa.backbone import decode
from nasa.student import generate
from pipeline.evaluation.sheet import contact_sheet, to_pixels
from pipeline.recipe import Recipe
from pipeline.tracking import Tracker

if TYPE_CHECKING:
    from pipeline.training.distiller import Distiller

EVERY = 10  # steps between two writes to MLflow
RATE_STEPS = 20  # the latest steps, over which images/s is taken
SHEET_PROMPTS = ("a photo of a shape", "a photo of a star", "a photo of a red shape", "a photo of a ring")
SHEET_IMAGES = 8
SHEET_SCALE = 0.5
SHEET_NEGATIVE = "low quality"
PREVIEW_TEXTS = ("", SHEET_NEGATIVE, *SHEET_PROMPTS)


class Progress:
    """Rank 0's side: posts to the bar and to MLflow; on other ranks the methods do nothing."""

    def __init__(self, tracker: Tracker | None, board: Any, recipe: Recipe, first: int, attempt: int = 0) -> None:
        self._tracker, self.board, self._recipe = tracker, board, recipe
        self._stop_requested: Any = None  # rank 0's question, answered while a step is computed
        self._times = deque([time.monotonic()], maxlen=RATE_STEPS + 1)
        self._waits: deque[float] = deque(maxlen=RATE_STEPS)
        if tracker:
            tracker.watch_machine()
        self.begin(attempt)
        if tracker and first:
            board.say.remote(f"continuing from the checkpoint at step {first} of {recipe.train.steps}")

    def begin(self, attempt: int) -> None:
        """Write metrics of this attempt from where it was written; one that was rolled back stays beside it."""
        self._attempt = attempt
        if self._tracker is not None:
            self._tracker.skip_written("attempt", float(attempt))

    def stop_requested(self) -> bool:
        """Tell whether the driver was interrupted; on other ranks never. The answer may be a step late."""
        if self._tracker is None:
            return False
        answer = self._stop_requested is not None and bool(ray.get(self._stop_requested))
        self._stop_requested = self.board.stop_requested.remote()
        return answer

    def stopped(self) -> None:
        """Tell the driver that the checkpoint of a training that it stopped is stored."""
        if self._tracker is not None:
            ray.get(self.board.set_stored.remote())

    def say(self, message: str) -> None:
        if self._tracker is not None:
            self.board.say.remote(message)

    def note(self, text: str) -> None:
        """In the bar, after the last step."""
        if self._tracker is not None:
            self.board.post.remote(self._recipe.train.steps, text)

    def stop(self, why: str) -> None:
        """Leave word for the driver."""
        if self._tracker is not None:
            ray.get(self.board.stop.remote(why))

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.flush()

    def update(self, step: int, metrics: Mapping[str, float], waited: float) -> None:
        """`waited` are the seconds that the step waited for its prompts."""
        if self._tracker is None:
            return
        self._waits.append(waited)
        self._times.append(time.monotonic())
        rate = (len(self._times) - 1) * self._recipe.train.batch_size / (self._times[-1] - self._times[0])
        text = f"loss {metrics['loss_student']:.4f}, LoRA {metrics['loss_lora_teacher']:.4f}, {rate:.0f} images/s"
        self.board.post.remote(step + 1, text)
        if (step + 1) % EVERY == 0:
            own = {
                "images_per_second": rate,
                "data_wait_share": sum(self._waits) / (self._times[-1] - self._times[0]),
                "memory_gib": peak_memory() / 2**30,
                "attempt": float(self._attempt),
            }
            self._tracker.metrics({**metrics, **own}, step + 1, int(time.time() * 1000))

    @torch.no_grad()
    def sheet(self, distiller: "Distiller", step: int) -> None:
        """Fixed prompts and seeds through the raw student, with and without a negative prompt, to MLflow."""
        if self._tracker is None:
            return
        model, device = distiller.model, distiller.null.states.device
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
    """Most bytes that this process has had: of its GPU, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
