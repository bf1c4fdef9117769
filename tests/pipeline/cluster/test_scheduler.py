import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline.cluster.scheduler import Scheduler, job_id
from pipeline.errors import StoreError
from pipeline.recipe import load
from pipeline.schedules.history import FAILED, History, Tick
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
    assert world.said == ["nightly: 20261201T0300Z was missed"]


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


def test_a_job_that_was_killed_is_submitted_again(world):
    world.look(DUE)
    world.past.write(Tick(TICK).begun(DUE))
    world.look(DUE + minutes(5))
    assert len(world.cluster.submitted) == 1, "it runs"
    world.cluster.jobs[job_id("nightly", TICK, 1)] = "FAILED"
    world.look(DUE + minutes(6))
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]


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
    assert world.cluster.submitted[1:] == [f"tick-nightly-{TICK}-2"]


def test_a_clock_that_goes_back_submits_nothing(world):
    now = DUE + timedelta(days=5)
    world.look(now)
    world.past.write(Tick("20261126T0300Z", "done"))
    world.look(now - timedelta(days=2))
    assert len(world.cluster.submitted) == 1


def test_paused_until_resumed_but_run_now_runs(world):
    world.schedules.pause("nightly", True)
    world.look(DUE)
    assert not world.cluster.submitted
    world.schedules.ask("nightly", DUE + minutes(7))
    world.look(DUE + minutes(7))
    world.look(DUE + minutes(9))
    assert world.cluster.submitted == ["tick-nightly-20261121T0307Z-1"]


def test_one_that_is_broken_leaves_the_others_alone_and_is_said_once(world):
    world.schedules.store.write("broken.json", json.dumps({"name": "broken"}).encode())
    scheduler = Scheduler(world.schedules, world.cluster, world.said.append)
    for later in range(3):
        scheduler.look(DUE + minutes(later))
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]
    assert sum("broken.json: is no schedule" in line for line in world.said) == 1


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
        raise StoreError(f"{folder.uri}: cannot be listed: 503")

    monkeypatch.setattr(Folder, "names", away)
    for later in (0, 1, 2):
        scheduler.look(DUE + minutes(later))
    assert world.said == [f"{world.schedules.store.uri}: {world.schedules.store.uri}: cannot be listed: 503"]
    monkeypatch.setattr(Folder, "names", listed)
    scheduler.look(DUE + minutes(3))
    assert world.cluster.submitted == [f"tick-nightly-{TICK}-1"]
