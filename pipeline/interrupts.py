"""SIGINT from within: what a process is interrupted by that may not go on, because another one has taken over."""

import os
import signal
import threading

stop_immediately = threading.Event()  # set if not even a last checkpoint may be written


def interrupt_immediately() -> None:
    """Interrupt this process as Ctrl-C does, and leave no time; `_thread.interrupt_main` would not wake what sleeps."""
    stop_immediately.set()
    os.kill(os.getpid(), signal.SIGINT)
