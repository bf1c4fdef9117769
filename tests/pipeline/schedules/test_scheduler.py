import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline.errors import StorageError
from pipeline.recipe import load
from pipeline.schedules.history import DIED, FAILED, History, ScheduledRun, to_iso
from pipeline.schedules.lease import Lease, LeaseObserver
from pipeline.schedules.schedule_store import ScheduleStore
from pipeline.schedules.scheduler import Scheduler, build_submission_id
from pipeline.storage import Folder

ADDED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DUE = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
TIME = "20261121T0300Z"


class Cluster:
    """A job server: jobs by their ids."""

    def __init__(self):
        self.jobs, self.submitted = {}, []

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]

    def submit_job(self, *, submission_id, entrypoint, **_):
        assert submission_id not in self.jobs
        self.jobs[submission_id] = "RUNNING"
        self.submitted.append(submission_id)


@pytest.fixture
def world(tmp_path):
    schedules = ScheduleStore(Folder.from_uri(tmp_path))
    sets = ["schedule.cron='0 3 * * *'", "schedule.retries=1", "schedule.retry_minutes=10"]
    schedules.add("nightly", load("shapes", sets), "sqlite://", ADDED)
    cluster, logged = Cluster(), []
    return SimpleNamespace(
        schedules=schedules,
        cluster=cluster,
        logged=logged,
        past=History(schedules.get_folder("nightly")),
        poll=lambda now: Scheduler(schedules, cluster, logged.append).poll(now),  # anew each time: it holds nothing
    )


def minutes(count):
    return timedelta(minutes=count)


def test_a_run_is_submitted_once_however_often_it_is_looked_at(world):
    world.poll(DUE - minutes(1))
    assert not world.cluster.submitted, "adding a schedule does not make up for the time before it"
    for later in (0, 1, 60, 20 * 60):
        world.poll(DUE + minutes(later))
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1"]


def test_after_downtime_one_run_is_caught_up_with(world):
    world.poll(DUE + timedelta(days=9, hours=2))
    assert world.cluster.submitted == ["scheduled-nightly-20261130T0300Z-1"]


def test_what_is_too_late_is_written_down_as_missed(tmp_path, world):
    world.schedules.remove("nightly")
    world.schedules.add("nightly", load("shapes", ["schedule.cron='0 3 1 * *'"]), "sqlite://", ADDED)
    world.poll(datetime(2026, 12, 5, tzinfo=UTC))
    world.poll(datetime(2026, 12, 5, tzinfo=UTC))
    assert not world.cluster.submitted
    assert world.past.read("20261201T0300Z").state == "missed"
    assert world.logged == ["nightly: 20261201T0300Z missed: nothing ran within 24 hours"]


def test_a_failed_one_is_retried_after_its_pause_and_not_for_ever(world):
    world.poll(DUE)
    failed = ScheduledRun(TIME).begin_attempt(DUE).end_attempt(FAILED, DUE + minutes(5), "it broke")
    world.past.write(failed)
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "FAILED"
    world.poll(DUE + minutes(14))
    assert len(world.cluster.submitted) == 1
    world.poll(DUE + minutes(15))
    assert world.cluster.submitted[1:] == [f"scheduled-nightly-{TIME}-2"]
    world.past.write(failed.begin_attempt(DUE + minutes(16)).end_attempt(FAILED, DUE + minutes(20), "again"))
    world.cluster.jobs[build_submission_id("nightly", TIME, 2)] = "FAILED"
    world.poll(DUE + timedelta(hours=5))
    assert len(world.cluster.submitted) == 2


def test_a_job_that_was_killed_is_written_down_and_tried_again(world):
    world.poll(DUE)
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    world.poll(DUE + minutes(5))
    assert len(world.cluster.submitted) == 1, "it runs"
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "FAILED"
    world.poll(DUE + minutes(6))
    assert (world.past.read(TIME).state, world.past.read(TIME).reason) == (FAILED, DIED)
    world.poll(DUE + minutes(15))
    assert len(world.cluster.submitted) == 1, "schedule.retry_minutes"
    world.poll(DUE + minutes(16))
    assert world.cluster.submitted[1:] == [f"scheduled-nightly-{TIME}-2"]


def test_one_that_was_killed_too_often_does_not_look_as_if_it_ran(world):
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE).begin_attempt(DUE))
    world.poll(DUE + minutes(1))
    assert world.past.read(TIME).state == FAILED
    world.poll(DUE + timedelta(hours=20))
    assert not world.cluster.submitted


@pytest.mark.parametrize("begun", [True, False])
def test_one_that_a_person_stopped_stays_so(world, begun):
    world.poll(DUE)
    if begun:
        world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "STOPPED"
    for later in (1, 60, 600):
        world.poll(DUE + minutes(later))
    assert world.past.read(TIME).state == "stopped"
    assert len(world.cluster.submitted) == 1


def test_one_that_another_launcher_began_runs_for_as_long_as_its_lease_lives(world, monkeypatch):
    """A cron's, or another cluster's: this cluster has no job of it."""
    held = Lease(world.schedules.get_folder("nightly"), f"scheduled run {TIME}", 0.5).__enter__()
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    running = world.past.read(TIME)
    scheduler = Scheduler(world.schedules, world.cluster, world.logged.append)
    scheduler._observers["nightly"] = LeaseObserver(world.schedules.get_folder("nightly"), 0.5)
    for later in range(1, 8):
        scheduler.poll(DUE + minutes(later))
        time.sleep(0.2)
    assert world.past.read(TIME) == running
    held._released.set()  # its process dies: no beat, and the lease is not given back
    held._thread.join()
    scheduler.poll(DUE + minutes(9))
    time.sleep(0.6)
    scheduler.poll(DUE + minutes(10))
    assert world.past.read(TIME).state == FAILED
    assert not world.cluster.submitted


def test_what_runs_longer_than_to_the_next_time_is_still_tried_again(world):
    world.poll(DUE)
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    next_day = DUE + timedelta(days=1)
    world.poll(next_day)
    skipped = world.past.read("20261122T0300Z")
    assert (skipped.state, skipped.reason) == ("skipped", f"scheduled run {TIME} was still running")
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "FAILED"
    world.poll(next_day + minutes(5))
    world.poll(next_day + minutes(15))
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1", f"scheduled-nightly-{TIME}-2"]


def test_run_now_that_was_left_out_does_not_hide_what_runs(world):
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "RUNNING"
    asked = world.schedules.request_run_now("nightly", DUE + minutes(120))
    world.poll(DUE + minutes(120))
    assert world.cluster.submitted == [f"scheduled-nightly-{asked}-1"]
    world.past.write(ScheduledRun(asked, "skipped", "was still running"))
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "FAILED"
    world.poll(DUE + minutes(130))
    world.poll(DUE + minutes(140))
    assert world.cluster.submitted[1:] == [f"scheduled-nightly-{TIME}-2"]


def test_run_now_is_due_whatever_was_due_in_this_minute_or_by_a_clock_that_is_ahead(world):
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE).end_attempt("done", DUE + minutes(1)))
    world.past.write(ScheduledRun("20261121T0301Z", "skipped", "was still running"))
    for now in (DUE, DUE - minutes(3)):
        assert world.schedules.request_run_now("nightly", now) == "20261121T0302Z"
    world.poll(DUE + minutes(1))
    assert world.cluster.submitted == ["scheduled-nightly-20261121T0302Z-1"]


def test_what_was_asked_for_once_changes_nothing_later(tmp_path, world):
    """Neither is late what was not asked for, nor does a pause bring back what failed before something newer."""
    world.schedules.request_run_now("nightly", DUE - minutes(20))
    world.poll(DUE - minutes(20))
    world.past.write(
        ScheduledRun("20261121T0240Z")
        .begin_attempt(DUE - minutes(20))
        .end_attempt(FAILED, DUE - minutes(15), "it broke")
    )
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE).end_attempt("done", DUE + minutes(5)))
    world.schedules.set_paused("nightly", True)
    world.poll(DUE + minutes(60))
    assert len(world.cluster.submitted) == 1
    world.schedules.remove("nightly")
    world.schedules.add("nightly", load("shapes", ["schedule.cron='0 3 1 * *'"]), "sqlite://", ADDED)
    world.schedules.request_run_now("nightly", DUE + minutes(90))
    world.past.write(ScheduledRun("20261121T0430Z", "done"))
    world.poll(datetime(2026, 12, 3, 3, 0, tzinfo=UTC))
    assert world.past.read("20261201T0300Z").state == "missed"


def test_what_failed_before_it_was_added_anew_or_resumed_is_not_tried_again(world):
    world.past.write(ScheduledRun("20261119T0300Z").begin_attempt(ADDED).end_attempt(FAILED, ADDED, "it broke"))
    world.poll(ADDED + timedelta(hours=1))
    assert not world.cluster.submitted


def test_what_was_written_down_meanwhile_is_not_written_over(world, monkeypatch):
    """The job writes that it is done after its record was read and before its state is asked for."""
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "SUCCEEDED"
    listed = world.cluster.list_jobs

    def meanwhile():
        world.past.write(world.past.read(TIME).end_attempt("done", DUE + minutes(1)))
        return listed()

    world.cluster.list_jobs = meanwhile
    world.poll(DUE + minutes(1))
    assert world.past.read(TIME).state == "done"


def test_a_job_that_ended_before_it_began_is_seen_and_retried(world):
    world.poll(DUE)
    world.cluster.jobs[build_submission_id("nightly", TIME, 1)] = "FAILED"
    world.poll(DUE + minutes(1))
    assert world.past.read(TIME).state == FAILED
    assert "ended before it started" in world.past.read(TIME).reason
    world.poll(DUE + minutes(12))
    assert world.cluster.submitted[1:] == [f"scheduled-nightly-{TIME}-2"]


def test_a_new_cluster_goes_on_with_what_the_old_one_had(world):
    world.poll(DUE)
    world.past.write(ScheduledRun(TIME).begin_attempt(DUE))
    world.cluster.jobs.clear()
    world.poll(DUE + minutes(30))
    world.poll(DUE + minutes(40))
    assert world.cluster.submitted[1:] == [f"scheduled-nightly-{TIME}-2"]


def test_a_clock_that_goes_back_does_no_time_twice(world):
    for day in range(6):
        world.poll(DUE + timedelta(days=day))
        world.past.write(ScheduledRun(f"202611{21 + day}T0300Z").begin_attempt(DUE).end_attempt("done", DUE))
    for hours in (1, 30, 60):
        world.poll(DUE + timedelta(days=5, hours=-hours))
    assert len(world.cluster.submitted) == 6


def test_a_clock_that_was_far_ahead_for_once_stops_nothing(world):
    world.past.write(ScheduledRun("20270301T0300Z").begin_attempt(DUE).end_attempt("done", DUE))
    world.poll(DUE)
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1"]


def test_paused_until_resumed_but_run_now_runs(world):
    world.schedules.set_paused("nightly", True)
    world.poll(DUE)
    assert not world.cluster.submitted
    world.schedules.request_run("nightly", DUE + minutes(7))
    world.poll(DUE + minutes(7))
    world.poll(DUE + minutes(9))
    assert world.cluster.submitted == ["scheduled-nightly-20261121T0307Z-1"]


@pytest.mark.parametrize(
    "fields",
    [
        {"recipe": None},
        {"added_at": "2026-11-20T12:00:00"},
        {"requested_at": "then"},
        {"name": "another"},
        {"tracking_uri": 5},
        {"more": 1},
    ],
)
def test_one_that_is_broken_leaves_the_others_alone_and_is_logged_once(world, fields):
    whole = json.loads(world.schedules.folder.read("nightly.json")) | {"name": "broken"}
    world.schedules.folder.write("broken.json", json.dumps(whole | fields).encode())
    scheduler = Scheduler(world.schedules, world.cluster, world.logged.append)
    for later in range(3):
        scheduler.poll(DUE + minutes(later))
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1"]
    assert sum("broken.json: got another file; expected a schedule" in line for line in world.logged) == 1


@pytest.mark.parametrize("fields", [{"attempts": []}, {"state": "odd"}, {"outcome": 1}, {"scheduled_time": "x"}])
def test_a_record_that_is_none_is_logged_and_nothing_is_begun(world, fields):
    whole = {"scheduled_time": TIME, "state": "failed", "attempts": [{"started": to_iso(DUE), "ended": to_iso(DUE)}]}
    world.past.folder.write(f"{TIME}.json", json.dumps(whole).encode())
    assert world.past.read(TIME).state == FAILED
    world.past.folder.write(f"{TIME}.json", json.dumps(whole | fields).encode())
    world.poll(DUE)
    assert not world.cluster.submitted
    assert "expected the record of a run" in world.logged[0]


def test_whatever_goes_wrong_with_one_the_others_are_looked_at_and_no_secret_is_logged(world, monkeypatch):
    read = ScheduleStore.read

    def odd(schedules, name):
        if name == "another":
            raise ArithmeticError("http://me:hush@mlflow is odd")
        return read(schedules, name)

    world.schedules.add("another", world.schedules.read("nightly").recipe, "sqlite://", ADDED)
    monkeypatch.setattr(ScheduleStore, "read", odd)
    world.poll(DUE)
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1"]
    assert world.logged[0] == "another: ArithmeticError: http://me:***@mlflow is odd"


def test_two_schedulers_submit_one_job(world):
    """The second saw the cluster before the first had submitted."""
    first = Scheduler(world.schedules, world.cluster, world.logged.append)
    seen = Cluster()
    seen.list_jobs = lambda: []

    def refuse(*, submission_id, **_):
        raise RuntimeError(f"Job with submission_id {submission_id} already exists.")

    seen.submit_job = refuse
    first.poll(DUE)
    Scheduler(world.schedules, seen, world.logged.append).poll(DUE)
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1"]
    assert any("already exists" in line for line in world.logged)


def test_a_store_that_is_away_is_logged_once_and_the_scheduler_lives(world, monkeypatch):
    scheduler, listed = Scheduler(world.schedules, world.cluster, world.logged.append), Folder.list_files

    def away(folder):
        raise StorageError(f"{folder.uri}: cannot be listed: 503")

    monkeypatch.setattr(Folder, "list_files", away)
    for later in (0, 1, 2):
        scheduler.poll(DUE + minutes(later))
    assert world.logged == [f"{world.schedules.folder.uri}: {world.schedules.folder.uri}: cannot be listed: 503"]
    monkeypatch.setattr(Folder, "list_files", listed)
    scheduler.poll(DUE + minutes(3))
    assert world.cluster.submitted == [f"scheduled-nightly-{TIME}-1"]
