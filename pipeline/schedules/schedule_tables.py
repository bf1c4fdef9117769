"""Schedules and their history as tables."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from pipeline import cron
from pipeline.schedules.history import History, ScheduledRun
from pipeline.schedules.schedule_store import ScheduleStore, StoredSchedule


def build_schedule_rows(store: ScheduleStore) -> list[dict[str, str]]:
    """Return one row per schedule."""
    return [_schedule_row(store, store.read(name)) for name in store.list_names()]


def build_history_rows(store: ScheduleStore, name: str) -> list[dict[str, str]]:
    """Return one row per scheduled time, oldest first; also of a removed schedule, whose history is kept."""
    history = History(store.get_folder(name))
    if not history.list_times():
        store.read(name)
    return [_run_row(run) for run in history.list_runs()]


def format_next_time(schedule: StoredSchedule, now: datetime | None = None) -> str:
    """Return the next scheduled time in the schedule's own time zone."""
    options = schedule.recipe.schedule
    when = cron.list_next_times(options.cron, options.timezone, now or datetime.now(UTC))[0]
    return f"{when.astimezone(ZoneInfo(options.timezone)):%a %Y-%m-%d %H:%M %Z}"


def _schedule_row(store: ScheduleStore, schedule: StoredSchedule) -> dict[str, str]:
    recipe, last = schedule.recipe, History(store.get_folder(schedule.name)).find_newest()
    return {
        "schedule": schedule.name,
        "recipe": recipe.name,
        "cron": recipe.schedule.cron,
        "zone": recipe.schedule.timezone,
        "next": "paused" if schedule.paused else format_next_time(schedule),
        "last": f"{last.scheduled_time} {last.state}" if last else "",
        "reason": _describe_reason(last) if last else "",
    }


def _run_row(run: ScheduledRun) -> dict[str, str]:
    first, last = (run.attempts[0], run.attempts[-1]) if run.attempts else (None, None)
    return {
        "scheduled time": run.scheduled_time,
        "state": run.state,
        "attempts": str(len(run.attempts)),
        "started": first.started if first else "",
        "ended": last.ended if last else "",
        "started from": run.started_from,
        "reason": _describe_reason(run),
    }


def _describe_reason(run: ScheduledRun) -> str:
    return str(run.outcome) if run.outcome else run.reason
