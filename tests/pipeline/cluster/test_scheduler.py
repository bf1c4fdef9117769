import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline.cluster.scheduler import Scheduler, job_id
from pipeline.errors import StorageError
from pipeline.recipe import load
from pipeline.schedules.history import DIED, FAILED, History, Tick, iso
from pipeline.schedules.lease import Lease, Watch
from pipeline.schedules.overview import run_now
from pipeline.schedules.store import Schedules
from pipeline.storage import Folder

ADDED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DUE = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
TICK = "20261121T0300Z"


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
    schedules = Schedules(Folder.of(tmp_path))
    sets = ["schedule.cron='0 3 * * *'", "schedule.retries=1", "schedule.retry_minutes=10"]
    schedules.add("nightly", load("shapes", sets), "sqlite://", ADDED)
    cluster, said = Cluster(), []
    return SimpleNamespace(
        schedules=schedules,
        cluster=cluster,
        said=said,
        past=History(schedules.home("nightly")),
        look=lambda now: Scheduler(schedules, cluster, said.append).look(now),  # a new one each time: it holds nothing
    )


def minutes(count):
    return timedelta(minutes=count)


def test_a_tick_is_submitted_once_however_often_it_is_looked_at(world):
    world.look(DUE - minutes(1))
    assert not world.cluster.submitted, "adding a schedule does not make up for the time before it"
    for later in (0, 1, 60, 20 * 60):
        world.look(DUE + minutes(later))
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]


def test_after_downtime_one_tick_is_caught_up_with(world):
    world.look(DUE + timedelta(days=9, hours=2))
    assert world.cluster.submitted == ["tick-nightly-20261130T0300Z-1"]


def test_what_is_too_late_is_written_down_as_missed(tmp_path, world):
    world.schedules.remove("nightly")
    world.schedules.add("nightly", load("shapes", ["schedule.cron='0 3 1 * *'"]), "sqlite://", ADDED)
    world.look(datetime(2026, 12, 5, tzinfo=UTC))
    world.look(datetime(2026, 12, 5, tzinfo=UTC))
    assert not world.cluster.submitted
    assert world.past.read("20261201T0300Z").state == "missed"
    assert world.said == ["nightly: 20261201T0300Z missed: nothing ran for 24 hours after it"]


def test_a_failed_one_is_retried_after_its_pause_and_not_for_ever(world):
    world.look(DUE)
    failed = Tick(TICK).begun(DUE).ended(FAILED, DUE + minutes(5), "it broke")
    world.past.write(failed)
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "FAILED"
    world.look(DUE + minutes(14))
    assert len(world.cluster.submitted) == 1
    world.look(DUE + minutes(15))
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]
    world.past.write(failed.begun(DUE + minutes(16)).ended(FAILED, DUE + minutes(20), "again"))
    world.cluster.jobs[job_id("nightly", TICK, 2)] = "FAILED"
    world.look(DUE + timedelta(hours=5))
    assert len(world.cluster.submitted) == 2


def test_a_job_that_was_killed_is_written_down_and_tried_again(world):
    world.look(DUE)
    world.past.write(Tick(TICK).begun(DUE))
    world.look(DUE + minutes(5))
    assert len(world.cluster.submitted) == 1, "it runs"
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "FAILED"
    world.look(DUE + minutes(6))
    assert (world.past.read(TICK).state, world.past.read(TICK).why) == (FAILED, DIED)
    world.look(DUE + minutes(15))
    assert len(world.cluster.submitted) == 1, "schedule.retry_minutes"
    world.look(DUE + minutes(16))
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]


def test_one_that_was_killed_too_often_does_not_look_as_if_it_ran(world):
    world.past.write(Tick(TICK).begun(DUE).begun(DUE))
    world.look(DUE + minutes(1))
    assert world.past.read(TICK).state == FAILED
    world.look(DUE + timedelta(hours=20))
    assert not world.cluster.submitted


@pytest.mark.parametrize("begun", [True, False])
def test_one_that_a_person_stopped_stays_so(world, begun):
    world.look(DUE)
    if begun:
        world.past.write(Tick(TICK).begun(DUE))
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "STOPPED"
    for later in (1, 60, 600):
        world.look(DUE + minutes(later))
    assert world.past.read(TICK).state == "stopped"
    assert len(world.cluster.submitted) == 1


def test_one_that_another_launcher_began_runs_for_as_long_as_its_lease_lives(world, monkeypatch):
    """A cron's, or another cluster's: this cluster has no job of it."""
    held = Lease(world.schedules.home("nightly"), f"tick {TICK}", 0.5).__enter__()
    world.past.write(Tick(TICK).begun(DUE))
    running = world.past.read(TICK)
    scheduler = Scheduler(world.schedules, world.cluster, world.said.append)
    scheduler.watches["nightly"] = Watch(world.schedules.home("nightly"), 0.5)
    for later in range(1, 8):
        scheduler.look(DUE + minutes(later))
        time.sleep(0.2)
    assert world.past.read(TICK) == running
    held._done.set()  # its process dies: no beat, and the lease is not given back
    held._thread.join()
    scheduler.look(DUE + minutes(9))
    time.sleep(0.6)
    scheduler.look(DUE + minutes(10))
    assert world.past.read(TICK).state == FAILED
    assert not world.cluster.submitted


def test_what_runs_longer_than_to_the_next_time_is_still_tried_again(world):
    world.look(DUE)
    world.past.write(Tick(TICK).begun(DUE))
    next_day = DUE + timedelta(days=1)
    world.look(next_day)
    skipped = world.past.read("20261122T0300Z")
    assert (skipped.state, skipped.why) == ("skipped", f"tick {TICK} still ran")
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "FAILED"
    world.look(next_day + minutes(5))
    world.look(next_day + minutes(15))
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1", f"tick-nightly-{TICK}-2"]


def test_run_now_that_was_left_out_does_not_hide_what_runs(world):
    world.past.write(Tick(TICK).begun(DUE))
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "RUNNING"
    asked = run_now(world.schedules, "nightly", DUE + minutes(120))
    world.look(DUE + minutes(120))
    assert world.cluster.submitted == [f"tick-nightly-{asked}-1"]
    world.past.write(Tick(asked, "skipped", "still ran"))
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "FAILED"
    world.look(DUE + minutes(130))
    world.look(DUE + minutes(140))
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]


def test_run_now_is_due_whatever_was_due_in_this_minute_or_by_a_clock_that_is_ahead(world):
    world.past.write(Tick(TICK).begun(DUE).ended("done", DUE + minutes(1)))
    world.past.write(Tick("20261121T0301Z", "skipped", "still ran"))
    for now in (DUE, DUE - minutes(3)):
        assert run_now(world.schedules, "nightly", now) == "20261121T0302Z"
    world.look(DUE + minutes(1))
    assert world.cluster.submitted == ["tick-nightly-20261121T0302Z-1"]


def test_what_was_asked_for_once_changes_nothing_later(tmp_path, world):
    """Neither is late what was not asked for, nor does a pause bring back what failed before something newer."""
    run_now(world.schedules, "nightly", DUE - minutes(20))
    world.look(DUE - minutes(20))
    world.past.write(Tick("20261121T0240Z").begun(DUE - minutes(20)).ended(FAILED, DUE - minutes(15), "it broke"))
    world.past.write(Tick(TICK).begun(DUE).ended("done", DUE + minutes(5)))
    world.schedules.pause("nightly", True)
    world.look(DUE + minutes(60))
    assert len(world.cluster.submitted) == 1
    world.schedules.remove("nightly")
    world.schedules.add("nightly", load("shapes", ["schedule.cron='0 3 1 * *'"]), "sqlite://", ADDED)
    run_now(world.schedules, "nightly", DUE + minutes(90))
    world.past.write(Tick("20261121T0430Z", "done"))
    world.look(datetime(2026, 12, 3, 3, 0, tzinfo=UTC))
    assert world.past.read("20261201T0300Z").state == "missed"


def test_what_failed_before_it_was_added_anew_or_resumed_is_not_tried_again(world):
    world.past.write(Tick("20261119T0300Z").begun(ADDED).ended(FAILED, ADDED, "it broke"))
    world.look(ADDED + timedelta(hours=1))
    assert not world.cluster.submitted


def test_what_was_written_down_meanwhile_is_not_written_over(world, monkeypatch):
    """The job writes that it is done after its record was read and before its state is asked for."""
    world.past.write(Tick(TICK).begun(DUE))
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "SUCCEEDED"
    listed = world.cluster.list_jobs

    def meanwhile():
        world.past.write(world.past.read(TICK).ended("done", DUE + minutes(1)))
        return listed()

    world.cluster.list_jobs = meanwhile
    world.look(DUE + minutes(1))
    assert world.past.read(TICK).state == "done"


def test_a_job_that_ended_before_it_began_is_seen_and_retried(world):
    world.look(DUE)
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "FAILED"
    world.look(DUE + minutes(1))
    assert world.past.read(TICK).state == FAILED
    assert "ended before it began" in world.past.read(TICK).why
    world.look(DUE + minutes(12))
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]


def test_a_new_cluster_goes_on_with_what_the_old_one_had(world):
    world.look(DUE)
    world.past.write(Tick(TICK).begun(DUE))
    world.cluster.jobs.clear()
    world.look(DUE + minutes(30))
    world.look(DUE + minutes(40))
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]


def test_a_clock_that_goes_back_does_no_time_twice(world):
    for day in range(6):
        world.look(DUE + timedelta(days=day))
        world.past.write(Tick(f"202611{21 + day}T0300Z").begun(DUE).ended("done", DUE))
    for hours in (1, 30, 60):
        world.look(DUE + timedelta(days=5, hours=-hours))
    assert len(world.cluster.submitted) == 6


def test_a_clock_that_was_far_ahead_for_once_stops_nothing(world):
    world.past.write(Tick("20270301T0300Z").begun(DUE).ended("done", DUE))
    world.look(DUE)
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]


def test_paused_until_resumed_but_run_now_runs(world):
    world.schedules.pause("nightly", True)
    world.look(DUE)
    assert not world.cluster.submitted
    world.schedules.ask("nightly", DUE + minutes(7))
    world.look(DUE + minutes(7))
    world.look(DUE + minutes(9))
    assert world.cluster.submitted == ["tick-nightly-20261121T0307Z-1"]


@pytest.mark.parametrize(
    "fields",
    [
        {"recipe_toml": None},
        {"added": "2026-11-20T12:00:00"},
        {"asked": "then"},
        {"name": "another"},
        {"tracking_uri": 5},
        {"more": 1},
    ],
)
def test_one_that_is_broken_leaves_the_others_alone_and_is_said_once(world, fields):
    whole = json.loads(world.schedules.store.read("nightly.json")) | {"name": "broken"}
    world.schedules.store.write("broken.json", json.dumps(whole | fields).encode())
    scheduler = Scheduler(world.schedules, world.cluster, world.said.append)
    for later in range(3):
        scheduler.look(DUE + minutes(later))
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]
    assert sum("broken.json: is no schedule" in line for line in world.said) == 1


@pytest.mark.parametrize("fields", [{"attempts": []}, {"state": "odd"}, {"outcome": 1}, {"tick": "x"}])
def test_a_record_that_is_none_is_said_and_nothing_is_begun(world, fields):
    whole = {"tick": TICK, "state": "failed", "attempts": [{"started": iso(DUE), "ended": iso(DUE)}]}
    world.past.folder.write(f"{TICK}.json", json.dumps(whole).encode())
    assert world.past.read(TICK).state == FAILED
    world.past.folder.write(f"{TICK}.json", json.dumps(whole | fields).encode())
    world.look(DUE)
    assert not world.cluster.submitted
    assert "is no record of a tick" in world.said[0]


def test_whatever_goes_wrong_with_one_the_others_are_looked_at_and_no_secret_is_said(world, monkeypatch):
    read = Schedules.read

    def odd(schedules, name):
        if name == "another":
            raise ArithmeticError("http://me:hush@mlflow is odd")
        return read(schedules, name)

    world.schedules.add("another", world.schedules.read("nightly").recipe, "sqlite://", ADDED)
    monkeypatch.setattr(Schedules, "read", odd)
    world.look(DUE)
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]
    assert world.said[0] == "another: ArithmeticError: http://me:***@mlflow is odd"


def test_two_schedulers_submit_one_job(world):
    """The second saw the cluster before the first had submitted."""
    first = Scheduler(world.schedules, world.cluster, world.said.append)
    seen = Cluster()
    seen.list_jobs = lambda: []

    def refuse(*, submission_id, **_):
        raise RuntimeError(f"Job with submission_id {submission_id} already exists.")

    seen.submit_job = refuse
    first.look(DUE)
    Scheduler(world.schedules, seen, world.said.append).look(DUE)
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]
    assert any("already exists" in line for line in world.said)


def test_a_store_that_is_away_is_said_once_and_the_scheduler_lives(world, monkeypatch):
    scheduler, listed = Scheduler(world.schedules, world.cluster, world.said.append), Folder.names

    def away(folder):
        raise StorageError(f"{folder.uri}: cannot be listed: 503")

    monkeypatch.setattr(Folder, "names", away)
    for later in (0, 1, 2):
        scheduler.look(DUE + minutes(later))
    assert world.said == [f"{world.schedules.store.uri}: {world.schedules.store.uri}: cannot be listed: 503"]
    monkeypatch.setattr(Folder, "names", listed)
    scheduler.look(DUE + minutes(3))
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]
