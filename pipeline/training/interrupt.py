"""Ctrl-C ends a training after the step at hand and its checkpoint; a second one ends it at once, as Ray Train does."""

import signal
import sys
from types import FrameType
from typing import Any

from ray.train.torch import TorchTrainer

NOTICE = "stopping after this step and its checkpoint; Ctrl-C again stops at once"


class StopRequestedError(Exception):
    """Training ends after a checkpoint, because the driver was interrupted."""


class InterruptibleTrainer(TorchTrainer):
    """Asks the workers through the progress actor to stop; `fit` then returns as after the last step."""

    def __init__(self, board: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._board = board

    def _register_sigint_handler(self, controller: Any) -> None:
        """Replace Ray Train's handler, which stops the workers wherever they are, by one that first asks them."""
        super()._register_sigint_handler(controller)
        abort = signal.getsignal(signal.SIGINT)

        def ask(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, abort)
            self._board.request_stop.remote()
            print(
                "stopping after this step and its checkpoint; Ctrl-C again stops at once", file=sys.stderr, flush=True
            )

        signal.signal(signal.SIGINT, ask)
