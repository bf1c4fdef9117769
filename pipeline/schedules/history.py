"""What became of each time that a schedule was due: `ticks/<tick>.json` in the schedule's folder."""

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline import cron
from pipeline.errors import UserError
from pipeline.storage import Folder

RUNNING, DONE, FAILED, REFUSED = "running", "done", "failed", "refused"
STOPPED, SKIPPED, MISSED = "stopped", "skipped", "missed"
FINAL = (DONE, REFUSED, STOPPED, SKIPPED, MISSED)  # a failed one may be tried again
STATES = (RUNNING, FAILED, *FINAL)
DIED = "its process ended without a word"


@dataclass(frozen=True)
class Attempt:
    """Times in ISO format, UTC."""

    started: str
    ended: str = ""
    error: str = ""


@dataclass(frozen=True)
class Tick:
    """`state` is one of this module's; `why` says what led to it. `outcome` is what `register` said."""

    tick: str
    state: str = RUNNING
    why: str = ""
    attempts: tuple[Attempt, ...] = ()
    started_from: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)

    def left(self, retries: int) -> bool:
        """Whether it is not over: it runs, or failed and may be tried again."""
        return self.state not in FINAL and len(self.attempts) <= retries

    def begun(self, now: datetime) -> "Tick":
        """With one attempt more; one that never ended has died."""
        earlier = tuple(replace(each, error=DIED) if not each.ended else each for each in self.attempts)
        return replace(self, state=RUNNING, why="", attempts=(*earlier, Attempt(iso(now))))

    def ended(self, state: str, now: datetime, error: str = "", **more: Any) -> "Tick":
        last = replace(self.attempts[-1], ended=iso(now), error=error)
        return replace(self, state=state, why=error, attempts=(*self.attempts[:-1], last), **more)


@dataclass(frozen=True)
class History:
    """Of one schedule, in its folder."""

    home: Folder

    @property
    def folder(self) -> Folder:
        return self.home / "ticks"

    def read(self, tick: str) -> Tick | None:
        name = f"{tick}.json"
        if not self.folder.has(name):
            return None
        try:
            told = json.loads(self.folder.read(name))
            return _checked(Tick(**{**told, "attempts": tuple(Attempt(**each) for each in told["attempts"])}))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{self.folder.uri}/{name}: is no record of a tick; allowed: one of this program's"
            ) from None

    def write(self, tick: Tick) -> Tick:
        self.folder.write(f"{tick.tick}.json", (json.dumps(asdict(tick), indent=2) + "\n").encode())
        return tick

    def names(self) -> list[str]:
        """The oldest first."""
        return [name.removesuffix(".json") for name in self.folder.names() if name.endswith(".json")]

    def newest(self) -> Tick | None:
        names = self.names()
        return self.read(names[-1]) if names else None

    def newest_begun(self, now: datetime) -> Tick | None:
        """The latest that was not left out. What is of a later time was begun by a clock that was wrong."""
        for name in reversed(self.names()):
            if name <= cron.stamp(now) and (tick := self.read(name)) and tick.attempts:
                return tick
        return None

    def replace(self, seen: Tick | None, tick: Tick) -> bool:
        """Write it, unless the record is no longer the one that was seen."""
        if self.read(tick.tick) != seen:
            return False
        self.write(tick)
        return True

    def all(self) -> list[Tick]:
        return [tick for name in self.names() if (tick := self.read(name))]


def _checked(tick: Tick) -> Tick:
    """Raises a ValueError where what was read is no record."""
    for attempt in tick.attempts:
        for time in (attempt.started, attempt.ended or attempt.started):
            of_iso(time)
    texts = (tick.tick, tick.why, tick.started_from, *(attempt.error for attempt in tick.attempts))
    whole = tick.state in STATES and isinstance(tick.outcome, dict) and all(isinstance(text, str) for text in texts)
    begun = bool(tick.attempts) or tick.state not in (RUNNING, FAILED)
    ended = tick.state != FAILED or bool(tick.attempts and tick.attempts[-1].ended)
    if not (whole and begun and ended and cron.is_stamp(tick.tick)):
        raise ValueError("no record")
    return tick


def iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")


def of_iso(text: str) -> datetime:
    """Raises a ValueError where it is none, or has no time zone."""
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return when


def due_at(tick: Tick) -> datetime:
    return cron.of_stamp(tick.tick)
