"""The progress bar of a run: rank 0 posts to a small actor, the driver draws; a worker's death does not tear it.

No torch here: the actor is a process of its own, and starts in a moment.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

POLL_SECONDS = 0.5
LOG_SECONDS = (2.0, 30.0)  # between the first two lines of a log, and at most; each pause is twice the one before
NAME = "distil"
Reading = tuple[bool, int, str, list[str]]  # whether it is the last; step, text, messages


class _Board:
    """The step that was last done, its figures, and messages that were not read yet."""

    def __init__(self) -> None:
        self.step, self.text, self.messages = 0, "starting the workers", list[str]()
        self.why, self.mistake = "", ""
        self.stopping = self.stored = False

    def post(self, step: int, text: str) -> None:
        self.step, self.text = step, text

    def say(self, message: str) -> None:
        self.messages.append(message)

    def stop(self, why: str) -> None:
        """Training ended before its last step, and starting it again would end it there again."""
        self.why = why

    def request_stop(self) -> None:
        """Ask the workers to end after the step at hand."""
        self.stopping = True

    def stop_requested(self) -> bool:
        return self.stopping

    def has_steps(self) -> bool:
        """Whether a step was done since the workers started: before that there is nothing to store."""
        return self.step > 0

    def set_stored(self) -> None:
        """The checkpoint of a training that was asked to stop is stored."""
        self.stored = True

    def is_stored(self) -> bool:
        return self.stored

    def refuse(self, mistake: str) -> None:
        """A user's mistake that a worker found: starting it again would find it again."""
        self.mistake = mistake

    def refused(self) -> str:
        return self.mistake

    def why_stopped(self) -> str:
        return self.why

    def read(self) -> tuple[int, str, list[str]]:
        messages, self.messages = self.messages, []
        return self.step, self.text, messages


@contextmanager
def progress_bar(steps: int) -> Iterator[Any]:
    """A bar in this process; yields the actor that workers post to. It lives and dies with the driver's machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
    done, show = threading.Event(), _on_terminal if sys.stderr.isatty() else _in_log
    drawer = threading.Thread(target=show, args=(steps, _readings(board, done)), daemon=True)
    drawer.start()
    try:
        yield board
    finally:
        done.set()
        drawer.join(timeout=5)


def _readings(board: Any, done: threading.Event) -> Iterator[Reading]:
    """Twice a second, and once when all is done."""
    finished = False
    while not finished:
        finished = done.wait(POLL_SECONDS)
        yield (finished, *ray.get(board.read.remote()))


def _on_terminal(steps: int, readings: Iterator[Reading]) -> None:
    with tqdm(total=steps, desc=NAME, unit="step", dynamic_ncols=True, mininterval=1) as bar:
        for _, step, text, messages in readings:
            for message in messages:
                bar.write(message)
            if step and not bar.n:
                bar.initial, bar.start_t = step, time.time()  # the rate counts steps of this session, not its start
            bar.set_postfix_str(text, refresh=False)
            bar.n = max(bar.n, step)
            bar.refresh()


def _in_log(steps: int, readings: Iterator[Reading]) -> None:
    """Print a line after each pause, which doubles while steps are done, and one at the end; nothing is said twice."""
    begun, written, first = time.monotonic(), 0.0, None
    pause, longest = LOG_SECONDS
    said: tuple[int, str] | None = None
    for finished, step, text, messages in readings:
        for message in messages:
            print(message, flush=True)
        now = time.monotonic()
        if step and first is None:
            first, begun = step, now
        if said != (step, text) and (finished or now - written > pause):
            pause = min(2 * pause, longest) if step else pause
            written, done, said = now, step - (first or 0), (step, text)
            pace = f", {(now - begun) / done:.2f} s/step" if done else ""
            print(f"{NAME}: {step} of {steps} steps{pace}, {text}", file=sys.stderr, flush=True)
