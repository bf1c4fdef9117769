"""What became of each time that a schedule was due: `ticks/<tick>.json` in the schedule's folder."""

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline import cron
from pipeline.errors import UserError
from pipeline.storage import Folder

RUNNING, DONE, FAILED, REFUSED, SKIPPED, MISSED = "running", "done", "failed", "refused", "skipped", "missed"
FINAL = (DONE, REFUSED, SKIPPED, MISSED)  # a failed one may be tried again
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
            return Tick(**{**told, "attempts": tuple(Attempt(**each) for each in told["attempts"])})
        except (ValueError, KeyError, TypeError):
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

    def all(self) -> list[Tick]:
        return [tick for name in self.names() if (tick := self.read(name))]


def iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")


def due_at(tick: Tick) -> datetime:
    return cron.of_stamp(tick.tick)
