"""Prometheus gauges of schedules, which the scheduler sets at every poll."""

from collections.abc import Sequence
from datetime import datetime

from pipeline import cron
from pipeline.gauges import GaugeGroup
from pipeline.schedules.due_action import find_cron_time
from pipeline.schedules.history import DONE, FINAL, MISSED, History, ScheduledRun, from_iso
from pipeline.schedules.schedule_store import StoredSchedule

GAUGES = {
    "lateness_seconds": "Seconds since the scheduled time that no run has been started for, or 0.",
    "last_success_timestamp_seconds": "Unix time at which the newest registered run ended, or 0.",
    "missed_in_a_row": "Number of the newest scheduled times in a row that were missed.",
    "paused": "1 if the schedule is paused or was removed, else 0.",
}
PREFIX = "nasa_schedule"


class ScheduleGauges:
    """Gauges with the tags `schedule` and `recipe`."""

    def __init__(self) -> None:
        self._gauges = GaugeGroup(PREFIX, GAUGES, ("schedule", "recipe"))
        self._tags: dict[str, dict[str, str]] = {}  # of each schedule
        self._settled: dict[tuple[str, str], ScheduledRun] = {}  # records that do not change any more

    def report(self, schedule: StoredSchedule, history: History, now: datetime) -> None:
        """Set the gauges of a schedule from its history."""
        tags = self._tags[schedule.name] = {"schedule": schedule.name, "recipe": schedule.recipe.name}
        self._gauges.report(describe(schedule, self._read_runs(schedule.name, history), now), tags)

    def end_removed(self, names: Sequence[str]) -> None:
        """End the gauges of schedules that are not among `names`; an alert must not miss their scheduler."""
        for name in self._tags.keys() - set(names):
            tags = self._tags.pop(name)
            self._gauges.forget(tags)
            self._gauges.report({"paused": 1.0}, tags)

    def _read_runs(self, name: str, history: History) -> list[ScheduledRun]:
        """Return all records, oldest first; those that are over, or older than the newest run, are read once."""
        times = history.list_times()
        runs = [run for time in times if (run := self._settled.get((name, time)) or history.read(time))]
        newest = max((run.scheduled_time for run in runs if run.attempts), default="")
        over = [run for run in runs if run.state in FINAL or run.scheduled_time < newest]
        self._settled |= {(name, run.scheduled_time): run for run in over}
        return runs


def describe(schedule: StoredSchedule, runs: list[ScheduledRun], now: datetime) -> dict[str, float]:
    """Return the values of all gauges; `runs` are the records, oldest first."""
    due, late = find_cron_time(schedule, now), 0.0
    if due and not any(due <= run.scheduled_time <= cron.format_stamp(now) for run in runs):  # also a requested run
        late = (now - cron.parse_stamp(due)).total_seconds()
    ends = [from_iso(run.attempts[-1].ended).timestamp() for run in runs if run.state == DONE and run.attempts]
    met = next((back for back, run in enumerate(reversed(runs)) if run.state != MISSED), len(runs))
    return {
        "lateness_seconds": late,
        "last_success_timestamp_seconds": ends[-1] if ends else 0.0,
        "missed_in_a_row": float(met),
        "paused": float(schedule.paused),
    }
