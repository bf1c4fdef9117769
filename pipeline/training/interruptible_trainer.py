"""A Ray Train trainer that Ctrl-C ends after the current step and its checkpoint; a second Ctrl-C ends it at once."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer

from pipeline.compat import register_sigint_handler
from pipeline.immediate_stop import stop_immediately
from pipeline.training.progress_actor import ProgressSink

NOTICE = "stopping after this step and its checkpoint; Ctrl-C again stops at once"
POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0  # Ray Train ends by itself within this time if no evaluation is running


class StopRequestedError(Exception):
    """The driver was interrupted; training ends after a checkpoint."""


class InterruptibleTrainer(TorchTrainer):
    """A trainer that on SIGINT first asks the workers to stop, and Ray Train once their checkpoint is stored.

    Before the first step, and if `immediate_stop.stop_immediately` is set, Ray Train is asked immediately.
    """

    def __init__(self, actor: ProgressSink, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._actor = actor
        self._ended = threading.Event()

    def fit(self) -> Result:
        """Train, and restore the SIGINT handler afterwards."""
        before = signal.getsignal(signal.SIGINT)
        try:
            return super().fit()
        finally:
            self._ended.set()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Replace Ray Train's handler, which kills the workers, by one that first asks them to stop."""
        register_sigint_handler(self, controller)
        abort = signal.getsignal(signal.SIGINT)
        assert callable(abort)

        def request_stop(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, abort)
            if stop_immediately.is_set() or not ray.get(self._actor.has_completed_steps.remote()):
                abort(number, frame)
                return
            print(NOTICE, file=sys.stderr, flush=True)
            self._actor.request_stop.remote()
            threading.Thread(target=self._abort_when_stored, daemon=True).start()

        signal.signal(signal.SIGINT, request_stop)

    def _abort_when_stored(self) -> None:
        """Interrupt this process again if Ray Train still runs after the last checkpoint is stored.

        It waits for evaluations of checkpoints, which start again when the run is resumed.
        """
        while not self._ended.wait(POLL_SECONDS):
            if ray.get(self._actor.is_checkpoint_stored.remote()):
                if not self._ended.wait(GRACE_SECONDS):
                    os.kill(os.getpid(), signal.SIGINT)
                return
