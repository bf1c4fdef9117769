"""What a run shows while it trains: one progress bar in the driver, metrics and contact sheets in MLflow.

Rank 0 posts to a small actor and the driver draws, so that a worker's death does not tear the bar.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
import torch
from tqdm import tqdm

from nasa.backbone import decode
from nasa.student import generate
from pipeline.recipe import Recipe
from pipeline.sheet import contact_sheet, to_pixels
from pipeline.tracking import Tracker

if TYPE_CHECKING:
    from pipeline.training import Trainer

EVERY = 10  # steps between two writes to MLflow
POLL_SECONDS = 0.5
SHEET_PROMPTS = ("a photo of a shape", "a photo of a star", "a photo of a red shape", "a photo of a ring")
SHEET_IMAGES = 8
SHEET_SCALE = 0.5


class _Board:
    """The step that was last done, its figures, and messages that were not read yet."""

    def __init__(self) -> None:
        self.step, self.text, self.messages = 0, "", list[str]()

    def post(self, step: int, text: str) -> None:
        self.step, self.text = step, text

    def say(self, message: str) -> None:
        self.messages.append(message)

    def read(self) -> tuple[int, str, list[str]]:
        messages, self.messages = self.messages, []
        return self.step, self.text, messages


@contextmanager
def progress_bar(steps: int) -> Iterator[Any]:
    """A bar in this process; yields the actor that workers post to."""
    board = ray.remote(_Board).options(num_cpus=0).remote()
    done = threading.Event()
    with tqdm(total=steps, desc="distil", unit="step", dynamic_ncols=True, mininterval=1) as bar:
        drawer = threading.Thread(target=_draw, args=(board, bar, done), daemon=True)
        drawer.start()
        try:
            yield board
        finally:
            done.set()
            drawer.join(timeout=5)


def _draw(board: Any, bar: Any, done: threading.Event) -> None:
    finished = False
    while not finished:
        finished = done.wait(POLL_SECONDS)
        step, text, messages = ray.get(board.read.remote())
        for message in messages:
            bar.write(message)
        if step and not bar.n:
            bar.initial = step - 1  # the rate counts this session's steps alone
        bar.set_postfix_str(text, refresh=False)
        bar.n = max(bar.n, step)
        bar.refresh()


class Progress:
    """Rank 0's side: posts to the bar and to MLflow; on other ranks the methods do nothing."""

    def __init__(self, tracker: Tracker | None, board: Any, recipe: Recipe, first: int) -> None:
        self._tracker, self._board, self._recipe, self._first = tracker, board, recipe, first
        self._started = time.monotonic()
        if tracker and first:
            board.say.remote(f"continuing from the checkpoint at step {first} of {recipe.train.steps}")

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._tracker is None:
            return
        rate = (step + 1 - self._first) * self._recipe.global_batch / (time.monotonic() - self._started)
        text = f"loss {metrics['loss_student']:.4f}, LoRA {metrics['loss_lora_teacher']:.4f}, {rate:.0f} images/s"
        self._board.post.remote(step + 1, text)
        if (step + 1) % EVERY == 0:
            self._tracker.metrics({**metrics, "images_per_second": rate}, step + 1, int(time.time() * 1000))

    @torch.no_grad()
    def sheet(self, trainer: "Trainer", step: int) -> None:
        """Fixed prompts and seeds through the raw student, with and without a negative prompt, to MLflow."""
        if self._tracker is None:
            return
        model, device = trainer.model, trainer.device
        prompts = (list(SHEET_PROMPTS) * SHEET_IMAGES)[:SHEET_IMAGES]
        noise = torch.randn((SHEET_IMAGES, *model.latent_shape), generator=torch.Generator().manual_seed(7))
        inputs = [part.to(device) for part in (noise, model.encode(prompts), model.encode(["low quality"]))]
        rows = []
        for label, scale in (("no negative", 0.0), (f"NASA {SHEET_SCALE}: low quality", SHEET_SCALE)):
            x0 = generate(trainer.engines.student.module, model.diffusion, *inputs, scale)
            rows.append((label, to_pixels(decode(model.vae, x0))))
        self._tracker.image(contact_sheet(rows, prompts), key="contact_sheet", step=step)
