"""The progress of a training run: rank 0 updates a small Ray actor, and the driver draws its bar or log lines.

The actor outlives a worker that fails. This module imports no torch, so that the actor starts quickly.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

POLL_SECONDS = 0.5
LOG_SECONDS = (2.0, 30.0)  # interval between the first two log lines, and the longest
NAME = "distil"
Reading = tuple[bool, int, str, list[str]]  # whether it is the last one; step, status, new messages


class RemoteMethod(Protocol):
    """A method of a Ray actor."""

    def remote(self, *arguments: object) -> Any:
        """Call the method; return an object reference."""


class ProgressSink(Protocol):
    """The handle of a `ProgressActor`, as Ray returns it."""

    update: RemoteMethod
    log: RemoteMethod
    set_stop_reason: RemoteMethod
    stop_reason: RemoteMethod
    request_stop: RemoteMethod
    stop_requested: RemoteMethod
    has_completed_steps: RemoteMethod
    set_checkpoint_stored: RemoteMethod
    is_checkpoint_stored: RemoteMethod
    set_user_error: RemoteMethod
    get_user_error: RemoteMethod
    read: RemoteMethod


class ProgressActor:
    """State that the workers and the driver share: progress, messages, and requests to stop."""

    def __init__(self) -> None:
        self._step, self._status, self._messages = 0, "starting the workers", list[str]()
        self._stop_reason, self._user_error = "", ""
        self._stop_requested = self._checkpoint_stored = False

    def update(self, step: int, status: str) -> None:
        """Set the number of completed steps and the text beside the bar."""
        self._step, self._status = step, status

    def log(self, message: str) -> None:
        """Queue a line for the driver to print."""
        self._messages.append(message)

    def set_stop_reason(self, reason: str) -> None:
        """Record why training ended before its last step; a restart would end there again."""
        self._stop_reason = reason

    def stop_reason(self) -> str:
        """Return why training ended early, or an empty string."""
        return self._stop_reason

    def request_stop(self) -> None:
        """Ask the workers to end after the current step."""
        self._stop_requested = True

    def stop_requested(self) -> bool:
        """Tell whether the driver asked the workers to end."""
        return self._stop_requested

    def has_completed_steps(self) -> bool:
        """Tell whether a step was completed since the workers started; before that there is nothing to store."""
        return self._step > 0

    def set_checkpoint_stored(self) -> None:
        """Record that the checkpoint of an interrupted training is stored."""
        self._checkpoint_stored = True

    def is_checkpoint_stored(self) -> bool:
        """Tell whether the checkpoint of an interrupted training is stored."""
        return self._checkpoint_stored

    def set_user_error(self, message: str) -> None:
        """Record a UserError that a worker met; a restart would meet it again."""
        self._user_error = message

    def get_user_error(self) -> str:
        """Return the UserError of a worker, or an empty string."""
        return self._user_error

    def read(self) -> tuple[int, str, list[str]]:
        """Return step, status and the messages that were not read yet."""
        messages, self._messages = self._messages, []
        return self._step, self._status, messages


@contextmanager
def show_progress(steps: int) -> Iterator[ProgressSink]:
    """Draw the progress in this process; yields the actor, which is placed on the driver's node."""
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    handle = ray.remote(ProgressActor).options(num_cpus=0, scheduling_strategy=driver_node).remote()
    actor = cast(ProgressSink, handle)
    done, draw = threading.Event(), _draw_on_terminal if sys.stderr.isatty() else _print_to_log
    thread = threading.Thread(target=draw, args=(steps, _poll_readings(actor, done)), daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        done.set()
        thread.join(timeout=5)


def _poll_readings(actor: ProgressSink, done: threading.Event) -> Iterator[Reading]:
    """Yield the actor's state twice a second, and once more at the end."""
    finished = False
    while not finished:
        finished = done.wait(POLL_SECONDS)
        yield (finished, *ray.get(actor.read.remote()))


def _draw_on_terminal(steps: int, readings: Iterator[Reading]) -> None:
    with tqdm(total=steps, desc=NAME, unit="step", dynamic_ncols=True, mininterval=1) as bar:
        for _, step, text, messages in readings:
            for message in messages:
                bar.write(message)
            if step and not bar.n:
                bar.initial, bar.start_t = step, time.time()  # the rate counts steps of this session, not its start
            bar.set_postfix_str(text, refresh=False)
            bar.n = max(bar.n, step)
            bar.refresh()


def _print_to_log(steps: int, readings: Iterator[Reading]) -> None:
    """Print a line at intervals that double, and one at the end; an unchanged state is printed once."""
    started, printed, first = time.monotonic(), 0.0, None
    interval, longest = LOG_SECONDS
    shown: tuple[int, str] | None = None
    for finished, step, text, messages in readings:
        for message in messages:
            print(message, flush=True)
        now = time.monotonic()
        if step and first is None:
            first, started = step, now
        if shown != (step, text) and (finished or now - printed > interval):
            interval = min(2 * interval, longest) if step else interval
            printed, done, shown = now, step - (first or 0), (step, text)
            pace = f", {(now - started) / done:.2f} s/step" if done else ""
            print(f"{NAME}: {step} of {steps} steps{pace}, {text}", file=sys.stderr, flush=True)
