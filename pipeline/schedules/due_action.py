"""The next action of a schedule, from the clock and its history; nothing here waits, writes or submits."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline import cron
from pipeline.schedules.history import FAILED, MISSED, RUNNING, SKIPPED, History, ScheduledRun
from pipeline.schedules.schedule_store import StoredSchedule


@dataclass(frozen=True)
class DueAction:
    """Submit a scheduled time as attempt number `attempt`; or, with 0, replace the record `expected` by `record`."""

    scheduled_time: str
    attempt: int = 0
    expected: ScheduledRun | None = None
    record: ScheduledRun | None = None


@dataclass(frozen=True)
class JobOutcome:
    """The state in which the job of a run ended, and why."""

    state: str
    reason: str


def find_due_action(
    schedule: StoredSchedule,
    history: History,
    now: datetime,
    job_outcome: Callable[[ScheduledRun], JobOutcome | None],
) -> DueAction | None:
    """Return the action that is due now, or None.

    `job_outcome` returns how the job of a run that is recorded as running ended, or None while it runs.
    """
    last = history.find_newest_started(now)
    if last and last.state == RUNNING and (outcome := job_outcome(last)):
        record = last.end_attempt(outcome.state, now, outcome.reason)
        return DueAction(last.scheduled_time, expected=last, record=record)
    requested, by_cron = _get_requested_time(schedule), find_cron_time(schedule, now)
    if requested and not history.read(requested) and not (last and last.scheduled_time >= requested):
        return DueAction(requested, 1)
    if by_cron and not history.read(by_cron) and not (last and last.scheduled_time >= by_cron):
        return _start_or_skip(schedule, by_cron, now, last)
    if last and last.state == FAILED and _is_running_or_will_retry(schedule, last):
        waited = now - datetime.fromisoformat(last.attempts[-1].ended)
        if waited >= timedelta(minutes=schedule.recipe.schedule.retry_minutes):
            return DueAction(last.scheduled_time, len(last.attempts) + 1, expected=last)
    return None


def _start_or_skip(
    schedule: StoredSchedule, scheduled_time: str, now: datetime, last: ScheduledRun | None
) -> DueAction:
    """Start a new scheduled time, unless an earlier run is unfinished or it is too late."""
    hours = schedule.recipe.schedule.max_lateness_hours
    if last and _is_running_or_will_retry(schedule, last):
        reason = "was still running" if last.state == RUNNING else "is being retried"
        record = ScheduledRun(scheduled_time, SKIPPED, f"scheduled run {last.scheduled_time} {reason}")
        return DueAction(scheduled_time, record=record)
    if now - cron.parse_stamp(scheduled_time) > timedelta(hours=hours):
        record = ScheduledRun(scheduled_time, MISSED, f"nothing ran within {hours:g} hours")
        return DueAction(scheduled_time, record=record)
    return DueAction(scheduled_time, 1)


def _is_running_or_will_retry(schedule: StoredSchedule, last: ScheduledRun) -> bool:
    """Tell whether a run is running or will be retried.

    A failed run is not retried while the schedule is paused, nor if it is older than the schedule's last resumption.
    """
    if last.state == RUNNING:
        return True
    too_old = last.scheduled_time < cron.format_stamp(datetime.fromisoformat(schedule.added_at))
    wanted = last.scheduled_time == _get_requested_time(schedule) or not (schedule.paused or too_old)
    return wanted and last.can_continue(schedule.recipe.schedule.retries)


def _get_requested_time(schedule: StoredSchedule) -> str | None:
    return cron.format_stamp(datetime.fromisoformat(schedule.requested_at)) if schedule.requested_at else None


def find_cron_time(schedule: StoredSchedule, now: datetime) -> str | None:
    """Return the latest time since the schedule was added or resumed, or None."""
    if schedule.paused:
        return None
    options = schedule.recipe.schedule
    latest = cron.find_latest_time(options.cron, options.timezone, now)
    return cron.format_stamp(latest) if latest > datetime.fromisoformat(schedule.added_at) else None
