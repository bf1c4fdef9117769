"""Schedules and what became of them, as a person reads them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from pipeline import cron
from pipeline.schedules.history import History, Tick, due_at
from pipeline.schedules.store import Schedule, Schedules


def rows(schedules: Schedules) -> list[dict[str, str]]:
    return [_row(schedules, schedules.read(name)) for name in schedules.names()]


def past(schedules: Schedules, name: str) -> list[dict[str, str]]:
    """Return a schedule's ticks, the oldest first; also of one that was removed, whose history is kept."""
    past = History(schedules.home(name))
    if not past.names():
        schedules.read(name)
    return [_past_row(tick) for tick in past.all()]


def next_time(schedule: Schedule, now: datetime | None = None) -> str:
    """In the schedule's own time zone."""
    options = schedule.recipe.schedule
    when = cron.following(options.cron, options.timezone, now or datetime.now(UTC))[0]
    return f"{when.astimezone(ZoneInfo(options.timezone)):%a %Y-%m-%d %H:%M %Z}"


def run_now(schedules: Schedules, name: str, now: datetime | None = None) -> str:
    """Returns the tick: this minute or, where that has been due already, the next that has not."""
    when, past = now or datetime.now(UTC), History(schedules.home(name))
    newest = past.newest_begun(when + timedelta(days=1))  # a cluster's clock may be ahead of this one's
    if newest:
        when = max(when, due_at(newest) + timedelta(minutes=1))
    while past.read(cron.stamp(when)):
        when += timedelta(minutes=1)
    schedules.ask(name, when)
    return cron.stamp(when)


def _row(schedules: Schedules, schedule: Schedule) -> dict[str, str]:
    recipe, last = schedule.recipe, History(schedules.home(schedule.name)).newest()
    return {
        "schedule": schedule.name,
        "recipe": recipe.name,
        "cron": recipe.schedule.cron,
        "zone": recipe.schedule.timezone,
        "next": "paused" if schedule.paused else next_time(schedule),
        "last": f"{last.tick} {last.state}" if last else "",
        "why": _why(last) if last else "",
    }


def _past_row(tick: Tick) -> dict[str, str]:
    first, last = (tick.attempts[0], tick.attempts[-1]) if tick.attempts else (None, None)
    return {
        "tick": tick.tick,
        "state": tick.state,
        "attempts": str(len(tick.attempts)),
        "started": first.started if first else "",
        "ended": last.ended if last else "",
        "from": tick.started_from,
        "why": _why(tick),
    }


def _why(tick: Tick) -> str:
    told = tick.outcome
    return f"{told['model']} version {told['version']}: {told['decision']}" if told else tick.why
