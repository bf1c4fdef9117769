"""What a schedule has to be done now, by the clock and its history alone: nothing here waits, writes or submits."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline import cron
from pipeline.schedules.history import FAILED, MISSED, RUNNING, SKIPPED, History, Tick
from pipeline.schedules.store import Schedule


@dataclass(frozen=True)
class Due:
    """A tick to submit, as its so manieth attempt; or, with 0, a `record` to write in the place of the one `seen`."""

    tick: str
    attempt: int = 0
    seen: Tick | None = None
    record: Tick | None = None


Fate = tuple[str, str]  # a state and why


def due(schedule: Schedule, past: History, now: datetime, fate: Callable[[Tick], Fate | None]) -> Due | None:
    """What is to be done now. `fate(tick)`: of one that is said to run what became of it; None while it runs."""
    last = past.newest_begun(now)
    if last and last.state == RUNNING and (ended := fate(last)):
        return Due(last.tick, seen=last, record=last.ended(ended[0], now, ended[1]))
    asked, clock = _asked(schedule), _by_clock(schedule, now)
    if asked and not past.read(asked) and not (last and last.tick >= asked):
        return Due(asked, 1)
    if clock and not past.read(clock) and not (last and last.tick >= clock):
        return _in_time(schedule, clock, now, last)
    if last and last.state == FAILED and _is_open(schedule, last):
        waited = now - datetime.fromisoformat(last.attempts[-1].ended)
        if waited >= timedelta(minutes=schedule.recipe.schedule.retry_minutes):
            return Due(last.tick, len(last.attempts) + 1, seen=last)
    return None


def _in_time(schedule: Schedule, name: str, now: datetime, last: Tick | None) -> Due:
    """A new time by the clock: begun, unless an earlier one is not over, or it is too late."""
    hours = schedule.recipe.schedule.max_lateness_hours
    if last and _is_open(schedule, last):
        goes_on = "still ran" if last.state == RUNNING else "is tried again"
        return Due(name, record=Tick(name, SKIPPED, f"tick {last.tick} {goes_on}"))
    if now - cron.of_stamp(name) > timedelta(hours=hours):
        return Due(name, record=Tick(name, MISSED, f"nothing ran for {hours:g} hours after it"))
    return Due(name, 1)


def _is_open(schedule: Schedule, last: Tick) -> bool:
    """Whether it runs or is tried again; not while paused, nor one of before the schedule was added or resumed."""
    if last.state == RUNNING:
        return True
    early = last.tick < cron.stamp(datetime.fromisoformat(schedule.added))
    wanted = last.tick == _asked(schedule) or not (schedule.paused or early)
    return wanted and last.left(schedule.recipe.schedule.retries)


def _asked(schedule: Schedule) -> str | None:
    return cron.stamp(datetime.fromisoformat(schedule.asked)) if schedule.asked else None


def _by_clock(schedule: Schedule, now: datetime) -> str | None:
    """The latest time that it was due at since it was added or resumed."""
    if schedule.paused:
        return None
    options = schedule.recipe.schedule
    latest = cron.latest(options.cron, options.timezone, now)
    return cron.stamp(latest) if latest > datetime.fromisoformat(schedule.added) else None
