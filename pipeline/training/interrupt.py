"""Ctrl-C ends a training after the step at hand and its checkpoint; a second one ends it at once, as Ray Train does."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer

from pipeline.interrupts import at_once

NOTICE = "stopping after this step and its checkpoint; Ctrl-C again stops at once"
POLL_SECONDS = 0.2
GRACE_SECONDS = 3.0  # in which Ray Train ends by itself where nothing runs beside the training


class StopRequestedError(Exception):
    """Training ends after a checkpoint, because the driver was interrupted."""


class InterruptibleTrainer(TorchTrainer):
    """Asks the workers through the progress actor to stop, and Ray Train when their checkpoint is stored.

    Before the first step, and where the caller may not go on (`interrupts.at_once`), Ray Train is told at once.
    """

    def __init__(self, board: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._board = board
        self._ended = threading.Event()

    def fit(self) -> Result:
        """Train; on leaving, SIGINT does again what it did before."""
        before = signal.getsignal(signal.SIGINT)
        try:
            return super().fit()
        finally:
            self._ended.set()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Replace Ray Train's handler, which stops the workers wherever they are, by one that first asks them."""
        super()._register_sigint_handler(controller)
        abort = signal.getsignal(signal.SIGINT)
        assert callable(abort)

        def ask(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, abort)
            if at_once.is_set() or not ray.get(self._board.has_steps.remote()):
                abort(number, frame)
                return
            print(NOTICE, file=sys.stderr, flush=True)
            self._board.request_stop.remote()
            threading.Thread(target=self._abort_when_stored, daemon=True).start()

        signal.signal(signal.SIGINT, ask)

    def _abort_when_stored(self) -> None:
        """Interrupt this process once more when the last checkpoint is stored and Ray Train goes on all the same.

        It waits for the evaluations beside the training, which are begun again when the run goes on.
        """
        while not self._ended.wait(POLL_SECONDS):
            if ray.get(self._board.is_stored.remote()):
                if not self._ended.wait(GRACE_SECONDS):
                    os.kill(os.getpid(), signal.SIGINT)
                return
