"""The gauges of a schedule: lateness, the last success, and how many times in a row were missed."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.gauges import GaugeGroup
from pipeline.recipe import load
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.schedules import history
from pipeline.schedules.history import Attempt, History, ScheduledRun
from pipeline.schedules.prometheus import ScheduleGauges, describe
from pipeline.schedules.schedule_store import StoredSchedule
from pipeline.storage import Folder

ADDED = "2026-11-20T00:00:00+00:00"
NOW = datetime(2026, 11, 25, 3, 40, tzinfo=UTC)
OUTCOME = RegisteredVersion("nasa-shapes", 1, "champion", "models:/nasa-shapes/1", "the first version")
ENDED = "2026-11-23T04:00:00+00:00"


def build_schedule(**changes):
    recipe = load("shapes", ["schedule.cron='0 3 * * *'"])
    return StoredSchedule("nightly", recipe, "sqlite://", ADDED, **changes)


def build_run(day, state):
    attempts = () if state in (history.MISSED, history.SKIPPED) else (Attempt(ENDED, ENDED),)
    return ScheduledRun(f"202611{day}T0300Z", state, attempts=attempts, outcome=OUTCOME if state == "done" else None)


@pytest.mark.parametrize(
    ("states", "late", "missed", "success"),
    [
        ({}, 2400, 0, 0),
        ({23: "done"}, 2400, 0, datetime.fromisoformat(ENDED).timestamp()),
        ({23: "done", 24: "missed", 25: "missed"}, 0, 2, datetime.fromisoformat(ENDED).timestamp()),
        ({24: "missed", 25: "running"}, 0, 0, 0),
        ({23: "missed", 24: "skipped", 25: "missed"}, 0, 1, 0),
        ({24: "failed"}, 2400, 0, 0),
        ({26: "running"}, 2400, 0, 0),
    ],
)
def test_the_gauges_follow_the_history(states, late, missed, success):
    runs = [build_run(day, state) for day, state in states.items()]
    assert describe(build_schedule(), runs, NOW) == {
        "lateness_seconds": late,
        "last_success_timestamp_seconds": success,
        "missed_in_a_row": missed,
        "paused": 0,
    }


def test_a_paused_schedule_is_never_late():
    described = describe(build_schedule(paused=True), [], NOW)
    assert (described["lateness_seconds"], described["paused"]) == (0, 1)


def test_a_time_that_a_requested_run_came_before_is_not_late():
    """The scheduler starts no cron time that is older than the newest run, and so records none."""
    requested = ScheduledRun("20261125T0302Z", history.RUNNING, attempts=(Attempt(ENDED),))
    assert describe(build_schedule(), [requested], NOW)["lateness_seconds"] == 0


def test_a_removed_schedule_ends_as_a_paused_one(tmp_path, monkeypatch):
    gauges, reported = ScheduleGauges(), []
    gauges.report(build_schedule(), History(Folder.from_uri(tmp_path)), NOW)
    monkeypatch.setattr(GaugeGroup, "_set", lambda self, values, tags: reported.append((dict(values), dict(tags))))
    gauges.end_removed(["nightly"])
    gauges._gauges.repeat()
    assert reported.pop()[0]["lateness_seconds"] == 2400
    gauges.end_removed([])
    gauges._gauges.repeat()
    assert reported == [({"paused": 1.0}, {"schedule": "nightly", "recipe": "shapes"})] * 2


def test_a_time_before_the_schedule_was_added_is_not_due():
    assert describe(build_schedule(), [], datetime(2026, 11, 20, 2, tzinfo=UTC))["lateness_seconds"] == 0


def test_a_record_that_is_over_is_read_once(tmp_path, monkeypatch):
    runs, gauges, reads = History(Folder.from_uri(tmp_path)), ScheduleGauges(), []
    for day, state in ((22, "failed"), (23, "done"), (24, "running")):
        runs.write(build_run(day, state))
    original = History.read
    monkeypatch.setattr(History, "read", lambda self, time: reads.append(time) or original(self, time))
    for hours in range(3):
        gauges.report(build_schedule(), runs, NOW + timedelta(hours=hours))
    assert [reads.count(f"202611{day}T0300Z") for day in (22, 23, 24)] == [1, 1, 3]
