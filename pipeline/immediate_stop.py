"""Immediate interruption of this process, such as when another process has taken over its lease."""

import os
import signal
import threading

stop_immediately = threading.Event()  # set if not even a last checkpoint may be written


def interrupt_without_checkpoint() -> None:
    """Interrupt this process like Ctrl-C, without a last checkpoint; `interrupt_main` would not wake a sleep."""
    stop_immediately.set()
    os.kill(os.getpid(), signal.SIGINT)
