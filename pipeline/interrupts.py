"""SIGINT from within: what a process is interrupted by that may not go on, because another one has taken over."""

import os
import signal
import threading

at_once = threading.Event()  # set where not even a last checkpoint may be written


def interrupt_at_once() -> None:
    """Interrupt this process as Ctrl-C does, and leave no time; `_thread.interrupt_main` would not wake what sleeps."""
    at_once.set()
    os.kill(os.getpid(), signal.SIGINT)
