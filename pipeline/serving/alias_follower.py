"""The version that an alias names, loaded again whenever the alias moves."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.errors import UserError, get_first_line

RETRY_SECONDS = 30.0  # after which a version that could not be loaded is tried again
Loaded = TypeVar("Loaded")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served(Generic[Loaded]):
    """A version's number and what was loaded from it."""

    number: str
    model: Loaded


class AliasFollower(Generic[Loaded]):
    """Keeps `current` the version that an alias names.

    `find` returns the alias's version; `load` returns the version's model, ready to use. Until a new version is loaded,
    and for as long as it cannot be, the old one stays current and `alarm` says why. `has_broken_version` tells whether
    the version cannot be loaded; else MLflow does not answer, or the alias is gone.
    """

    def __init__(self, find: Callable[[], str], load: Callable[[str], Loaded]) -> None:
        self._find, self._load = find, load
        number = find()
        self.current = Served(number, load(number))
        self.alarm, self.has_broken_version = "", False
        self._failures: dict[str, tuple[float, str]] = {}  # when and why a version failed to load, by its number
        self._stop = threading.Event()

    def look(self) -> bool:
        """Look at the alias once; return whether another version was taken over."""
        try:
            number = self._find()
        except (UserError, OSError) as error:  # MLflow is away, or the alias was deleted
            self._raise_alarm(f"{get_first_line(error)} Version {self.current.number} stays in service.")
            return False
        if number == self.current.number:
            self._end_alarm()
            return False
        failed_at, reason = self._failures.get(number, (-RETRY_SECONDS, ""))
        if reason and time.monotonic() < failed_at + RETRY_SECONDS:
            self._raise_alarm(reason)
            return False
        return self._take_over(number)

    def _take_over(self, number: str) -> bool:
        try:
            self.current = Served(number, self._load(number))
        except Exception as error:  # whatever is wrong with a version, the old one must stay in service
            reason = f"Version {number} cannot be served: {get_first_line(error)}"
            self._failures[number] = (time.monotonic(), f"{reason} Version {self.current.number} stays in service.")
            self._raise_alarm(self._failures[number][1])
            self.has_broken_version = True
            return False
        self._failures.pop(number, None)
        self._end_alarm()
        logger.info("version %s is in service", number)
        return True

    def _raise_alarm(self, text: str) -> None:
        if text != self.alarm:
            logger.error(text)
        self.alarm = text

    def _end_alarm(self) -> None:
        self.alarm, self.has_broken_version = "", False

    def follow(self, seconds: float, on_look: Callable[[], None] = lambda: None) -> None:
        """Look every few seconds, in a thread of its own, until `stop` is called."""

        def run() -> None:
            while not self._stop.wait(seconds):
                self.look()
                on_look()

        threading.Thread(target=run, name="alias-follower", daemon=True).start()

    def stop(self) -> None:
        """End the thread after its current look."""
        self._stop.set()
