import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from jobs.__main__ import main
from pipeline import notifications
from pipeline.errors import IN_JOB, StorageError
from pipeline.recipe import load
from pipeline.schedules.history import DIED, FAILED, History, ScheduledRun, to_iso
from pipeline.schedules.lease import Lease, LeaseObserver
from pipeline.schedules.prometheus import ScheduleGauges
from pipeline.schedules.schedule_store import ScheduleStore
from pipeline.schedules.scheduler import Scheduler, build_submission_id
from pipeline.storage import Folder

ADDED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DUE = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
SCHEDULED_TIME = "20261121T0300Z"


class FakeJobServer:
    """A job server that holds the state of each job by its id."""

    def __init__(self):
        self.jobs, self.submitted = {}, []

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]

    def submit_job(self, *, submission_id, entrypoint, **_):
        assert submission_id not in self.jobs
        self.jobs[submission_id] = "RUNNING"
        self.submitted.append(submission_id)


@pytest.fixture
def env(tmp_path):
    schedules = ScheduleStore(Folder.from_uri(tmp_path))
    overrides = ["schedule.cron='0 3 * * *'", "schedule.retries=1", "schedule.retry_minutes=10"]
    schedules.add("nightly", load("shapes", overrides), "sqlite://", ADDED)
    cluster, logged = FakeJobServer(), []
    return SimpleNamespace(
        schedules=schedules,
        cluster=cluster,
        logged=logged,
        history=History(schedules.get_folder("nightly")),
        poll=lambda now: Scheduler(schedules, cluster, logged.append).poll(
            now
        ),  # a new scheduler each time: it has no state
    )


def minutes(count):
    return timedelta(minutes=count)


def test_a_due_run_is_submitted_once_however_often_it_is_polled(env):
    env.poll(DUE - minutes(1))
    assert not env.cluster.submitted, "a new schedule does not catch up on earlier times"
    for later in (0, 1, 60, 20 * 60):
        env.poll(DUE + minutes(later))
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1"]


def test_only_the_latest_run_is_submitted_after_downtime(env):
    env.poll(DUE + timedelta(days=9, hours=2))
    assert env.cluster.submitted == ["scheduled-nightly-20261130T0300Z-1"]


def test_a_run_that_is_too_late_is_recorded_as_missed(tmp_path, env, monkeypatch):
    sent = []
    monkeypatch.setattr(notifications, "send", lambda options, notification: sent.append((options.url, notification)))
    env.schedules.remove("nightly")
    env.schedules.add(
        "nightly", load("shapes", ["schedule.cron='0 3 1 * *'", "notify.url='http://hook/x'"]), "sqlite://", ADDED
    )
    env.poll(datetime(2026, 12, 5, tzinfo=UTC))
    env.poll(datetime(2026, 12, 5, tzinfo=UTC))
    assert not env.cluster.submitted
    assert env.history.read("20261201T0300Z").state == "missed"
    assert env.logged == ["nightly: 20261201T0300Z missed: nothing ran within 24 hours"]
    missed = notifications.Notification("missed", "nasa-shapes", run="nightly/20261201T0300Z")
    assert sent == [("http://hook/x", missed)]


def test_a_failed_run_is_retried_after_a_pause_up_to_the_limit(env):
    env.poll(DUE)
    failed = ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE).end_attempt(FAILED, DUE + minutes(5), "it broke")
    env.history.write(failed)
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "FAILED"
    env.poll(DUE + minutes(14))
    assert len(env.cluster.submitted) == 1
    env.poll(DUE + minutes(15))
    assert env.cluster.submitted[1:] == [f"scheduled-nightly-{SCHEDULED_TIME}-2"]
    env.history.write(failed.begin_attempt(DUE + minutes(16)).end_attempt(FAILED, DUE + minutes(20), "again"))
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 2)] = "FAILED"
    env.poll(DUE + timedelta(hours=5))
    assert len(env.cluster.submitted) == 2


def test_a_killed_job_is_recorded_and_retried(env):
    env.poll(DUE)
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    env.poll(DUE + minutes(5))
    assert len(env.cluster.submitted) == 1, "the job still runs"
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "FAILED"
    env.poll(DUE + minutes(6))
    assert (env.history.read(SCHEDULED_TIME).state, env.history.read(SCHEDULED_TIME).reason) == (FAILED, DIED)
    env.poll(DUE + minutes(15))
    assert len(env.cluster.submitted) == 1, "schedule.retry_minutes"
    env.poll(DUE + minutes(16))
    assert env.cluster.submitted[1:] == [f"scheduled-nightly-{SCHEDULED_TIME}-2"]


def test_a_run_that_was_killed_too_often_is_recorded_as_failed(env):
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE).begin_attempt(DUE))
    env.poll(DUE + minutes(1))
    assert env.history.read(SCHEDULED_TIME).state == FAILED
    env.poll(DUE + timedelta(hours=20))
    assert not env.cluster.submitted


@pytest.mark.parametrize("started", [True, False])
def test_a_run_that_a_user_stopped_is_not_retried(env, started):
    env.poll(DUE)
    if started:
        env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "STOPPED"
    for later in (1, 60, 600):
        env.poll(DUE + minutes(later))
    assert env.history.read(SCHEDULED_TIME).state == "stopped"
    assert len(env.cluster.submitted) == 1


def test_a_run_of_another_launcher_counts_as_running_while_its_lease_lives(env, monkeypatch):
    """cron or another cluster may have started it, so that this cluster has no job for it."""
    lease = Lease(env.schedules.get_folder("nightly"), f"scheduled run {SCHEDULED_TIME}", 0.5).__enter__()
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    running = env.history.read(SCHEDULED_TIME)
    scheduler = Scheduler(env.schedules, env.cluster, env.logged.append)
    scheduler._observers["nightly"] = LeaseObserver(env.schedules.get_folder("nightly"), 0.5)
    for later in range(1, 8):
        scheduler.poll(DUE + minutes(later))
        time.sleep(0.2)
    assert env.history.read(SCHEDULED_TIME) == running
    lease._released.set()  # its process dies: no heartbeat, and the lease is not released
    lease._thread.join()
    scheduler.poll(DUE + minutes(9))
    time.sleep(0.6)
    scheduler.poll(DUE + minutes(10))
    assert env.history.read(SCHEDULED_TIME).state == FAILED
    assert not env.cluster.submitted


def test_a_run_that_outlasts_the_next_time_is_still_retried(env):
    env.poll(DUE)
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    next_day = DUE + timedelta(days=1)
    env.poll(next_day)
    skipped = env.history.read("20261122T0300Z")
    assert (skipped.state, skipped.reason) == ("skipped", f"scheduled run {SCHEDULED_TIME} was still running")
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "FAILED"
    env.poll(next_day + minutes(5))
    env.poll(next_day + minutes(15))
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1", f"scheduled-nightly-{SCHEDULED_TIME}-2"]


def test_a_skipped_request_does_not_hide_the_running_run(env):
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "RUNNING"
    requested = env.schedules.request_run_now("nightly", DUE + minutes(120))
    env.poll(DUE + minutes(120))
    assert env.cluster.submitted == [f"scheduled-nightly-{requested}-1"]
    env.history.write(ScheduledRun(requested, "skipped", "was still running"))
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "FAILED"
    env.poll(DUE + minutes(130))
    env.poll(DUE + minutes(140))
    assert env.cluster.submitted[1:] == [f"scheduled-nightly-{SCHEDULED_TIME}-2"]


def test_a_requested_run_gets_a_free_minute_even_if_the_clock_was_ahead(env):
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE).end_attempt("done", DUE + minutes(1)))
    env.history.write(ScheduledRun("20261121T0301Z", "skipped", "was still running"))
    for now in (DUE, DUE - minutes(3)):
        assert env.schedules.request_run_now("nightly", now) == "20261121T0302Z"
    env.poll(DUE + minutes(1))
    assert env.cluster.submitted == ["scheduled-nightly-20261121T0302Z-1"]


def test_a_past_request_has_no_later_effect(tmp_path, env):
    """Regular runs can still be late, and a pause does not bring back a failed run that has a newer successor."""
    env.schedules.request_run_now("nightly", DUE - minutes(20))
    env.poll(DUE - minutes(20))
    env.history.write(
        ScheduledRun("20261121T0240Z")
        .begin_attempt(DUE - minutes(20))
        .end_attempt(FAILED, DUE - minutes(15), "it broke")
    )
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE).end_attempt("done", DUE + minutes(5)))
    env.schedules.set_paused("nightly", True)
    env.poll(DUE + minutes(60))
    assert len(env.cluster.submitted) == 1
    env.schedules.remove("nightly")
    env.schedules.add("nightly", load("shapes", ["schedule.cron='0 3 1 * *'"]), "sqlite://", ADDED)
    env.schedules.request_run_now("nightly", DUE + minutes(90))
    env.history.write(ScheduledRun("20261121T0430Z", "done"))
    env.poll(datetime(2026, 12, 3, 3, 0, tzinfo=UTC))
    assert env.history.read("20261201T0300Z").state == "missed"


def test_failures_before_a_schedule_was_added_are_not_retried(env):
    env.history.write(ScheduledRun("20261119T0300Z").begin_attempt(ADDED).end_attempt(FAILED, ADDED, "it broke"))
    env.poll(ADDED + timedelta(hours=1))
    assert not env.cluster.submitted


def test_a_concurrently_written_record_is_not_overwritten(env, monkeypatch):
    """The job records its success after its record was read and before its state is asked for."""
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "SUCCEEDED"
    list_jobs = env.cluster.list_jobs

    def finish_and_list():
        env.history.write(env.history.read(SCHEDULED_TIME).end_attempt("done", DUE + minutes(1)))
        return list_jobs()

    env.cluster.list_jobs = finish_and_list
    env.poll(DUE + minutes(1))
    assert env.history.read(SCHEDULED_TIME).state == "done"


def test_a_job_that_ended_before_its_run_began_is_retried(env):
    env.poll(DUE)
    env.cluster.jobs[build_submission_id("nightly", SCHEDULED_TIME, 1)] = "FAILED"
    env.poll(DUE + minutes(1))
    assert env.history.read(SCHEDULED_TIME).state == FAILED
    assert "ended before it started" in env.history.read(SCHEDULED_TIME).reason
    env.poll(DUE + minutes(12))
    assert env.cluster.submitted[1:] == [f"scheduled-nightly-{SCHEDULED_TIME}-2"]


def test_a_new_cluster_resumes_the_runs_of_the_old_one(env):
    env.poll(DUE)
    env.history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(DUE))
    env.cluster.jobs.clear()
    env.poll(DUE + minutes(30))
    env.poll(DUE + minutes(40))
    assert env.cluster.submitted[1:] == [f"scheduled-nightly-{SCHEDULED_TIME}-2"]


def test_a_clock_that_is_set_back_repeats_no_run(env):
    for day in range(6):
        env.poll(DUE + timedelta(days=day))
        env.history.write(ScheduledRun(f"202611{21 + day}T0300Z").begin_attempt(DUE).end_attempt("done", DUE))
    for hours in (1, 30, 60):
        env.poll(DUE + timedelta(days=5, hours=-hours))
    assert len(env.cluster.submitted) == 6


def test_a_clock_that_was_once_far_ahead_blocks_no_run(env):
    env.history.write(ScheduledRun("20270301T0300Z").begin_attempt(DUE).end_attempt("done", DUE))
    env.poll(DUE)
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1"]


def test_a_paused_schedule_runs_only_on_request(env):
    env.schedules.set_paused("nightly", True)
    env.poll(DUE)
    assert not env.cluster.submitted
    env.schedules.request_run("nightly", DUE + minutes(7))
    env.poll(DUE + minutes(7))
    env.poll(DUE + minutes(9))
    assert env.cluster.submitted == ["scheduled-nightly-20261121T0307Z-1"]


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
def test_a_broken_schedule_is_logged_once_and_does_not_stop_the_others(env, fields):
    valid = json.loads(env.schedules.folder.read("nightly.json")) | {"name": "broken"}
    env.schedules.folder.write("broken.json", json.dumps(valid | fields).encode())
    scheduler = Scheduler(env.schedules, env.cluster, env.logged.append)
    for later in range(3):
        scheduler.poll(DUE + minutes(later))
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1"]
    assert sum("broken.json: got invalid content; expected a schedule" in line for line in env.logged) == 1


@pytest.mark.parametrize("fields", [{"attempts": []}, {"state": "odd"}, {"outcome": 1}, {"scheduled_time": "x"}])
def test_an_invalid_record_is_logged_and_nothing_is_submitted(env, fields):
    valid = {
        "scheduled_time": SCHEDULED_TIME,
        "state": "failed",
        "attempts": [{"started": to_iso(DUE), "ended": to_iso(DUE)}],
    }
    env.history.folder.write(f"{SCHEDULED_TIME}.json", json.dumps(valid).encode())
    assert env.history.read(SCHEDULED_TIME).state == FAILED
    env.history.folder.write(f"{SCHEDULED_TIME}.json", json.dumps(valid | fields).encode())
    env.poll(DUE)
    assert not env.cluster.submitted
    assert "expected the record of a run" in env.logged[0]


def test_an_old_record_that_is_damaged_stops_the_gauges_and_no_run(env):
    env.schedules.get_folder("nightly").write("history/20261101T0300Z.json", b"{}")
    env.history.write(ScheduledRun("20261120T0300Z").begin_attempt(ADDED).end_attempt("done", ADDED))
    gauges = ScheduleGauges()
    for _ in range(2):
        Scheduler(env.schedules, env.cluster, env.logged.append, gauges).poll(DUE)
    assert len(env.cluster.jobs) == 1
    assert any(line.startswith("gauges of nightly: ") for line in env.logged)


def test_an_unexpected_error_is_redacted_and_does_not_stop_the_others(env, monkeypatch):
    read = ScheduleStore.read

    def fail_for_another(schedules, name):
        if name == "another":
            raise ArithmeticError("http://me:hush@mlflow is odd")
        return read(schedules, name)

    env.schedules.add("another", env.schedules.read("nightly").recipe, "sqlite://", ADDED)
    monkeypatch.setattr(ScheduleStore, "read", fail_for_another)
    env.poll(DUE)
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1"]
    assert env.logged[0] == "another: ArithmeticError: http://me:***@mlflow is odd"


def test_two_schedulers_submit_one_job(env):
    """The second scheduler listed the jobs before the first one submitted its job."""
    first = Scheduler(env.schedules, env.cluster, env.logged.append)
    outdated = FakeJobServer()
    outdated.list_jobs = lambda: []

    def reject(*, submission_id, **_):
        raise RuntimeError(f"Job with submission_id {submission_id} already exists.")

    outdated.submit_job = reject
    first.poll(DUE)
    Scheduler(env.schedules, outdated, env.logged.append).poll(DUE)
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1"]
    assert any("already exists" in line for line in env.logged)


def test_a_storage_outage_is_logged_once_and_the_scheduler_continues(env, monkeypatch):
    scheduler, list_files = Scheduler(env.schedules, env.cluster, env.logged.append), Folder.list_files

    def fail(folder):
        raise StorageError(f"{folder.uri}: cannot be listed: 503")

    monkeypatch.setattr(Folder, "list_files", fail)
    for later in (0, 1, 2):
        scheduler.poll(DUE + minutes(later))
    assert env.logged == [f"{env.schedules.folder.uri}: {env.schedules.folder.uri}: cannot be listed: 503"]
    monkeypatch.setattr(Folder, "list_files", list_files)
    scheduler.poll(DUE + minutes(3))
    assert env.cluster.submitted == [f"scheduled-nightly-{SCHEDULED_TIME}-1"]


def test_outside_a_job_the_command_joins_no_cluster(tmp_path, monkeypatch, capsys):
    """RAY_ADDRESS may be a job server's URL there, as `ray job submit` reads it."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    monkeypatch.delenv(IN_JOB, raising=False)
    monkeypatch.setattr("pipeline.cluster.job_client.connect_from_job", lambda _: FakeJobServer())
    monkeypatch.setattr("pipeline.ray_session.start_ray_session", None)
    assert main(["scheduler", "--store", str(tmp_path), "--once"]) == 0
    assert "none yet" in capsys.readouterr().out
