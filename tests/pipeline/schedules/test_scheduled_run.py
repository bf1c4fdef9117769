import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline import cron
from pipeline.errors import StorageError, TrainingError, TransientError, UserError
from pipeline.recipe import Retention, load
from pipeline.registry import version_download, version_management
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.schedules import scheduled_run
from pipeline.schedules.history import DIED, History, ScheduledRun
from pipeline.schedules.lease import Lease, LeaseRecord, lease_store
from pipeline.schedules.scheduled_run import run_scheduled
from pipeline.storage import Folder

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SCHEDULED_TIME = "20261125T0300Z"
OUTCOME = RegisteredVersion("nasa-shapes", 1, "champion", "models:/nasa-shapes/1", "the first version")


class FakeJob:
    """A stand-in for the scheduled job, which records its calls and raises each given error once."""

    def __init__(self, *errors):
        self.errors, self.recipes, self.runs = list(errors), [], []

    def __call__(self, recipe, run):
        self.recipes.append(recipe)
        self.runs.append(run.uri)
        if self.errors and (error := self.errors.pop(0)):
            raise error
        return OUTCOME


@pytest.fixture
def recipe():
    return load("shapes", ["schedule.cron='0 3 * * *'", "schedule.retries=1", "schedule.warm_start='teacher'"])


@pytest.fixture
def run_schedule(tmp_path, recipe):
    def call(job, now=NOW, name=None, recipe=recipe):
        home = Folder.from_uri(tmp_path / "weekly")
        return run_scheduled(
            recipe,
            home,
            f"sqlite:///{tmp_path}/mlflow.db",
            scheduled_time=name,
            clock=lambda: now,
            job=job,
            lease_ttl=0.5,
        )

    return call


@pytest.fixture
def history(tmp_path):
    return History(Folder.from_uri(tmp_path / "weekly"))


def test_a_due_run_runs_once(run_schedule, history, tmp_path):
    job = FakeJob()
    assert run_schedule(job) == f"{SCHEDULED_TIME}: version 1 of nasa-shapes: the first version"
    assert run_schedule(job) == f"{SCHEDULED_TIME}: is already done"
    assert job.runs == [str(tmp_path / "weekly/runs" / SCHEDULED_TIME)]
    record = history.read(SCHEDULED_TIME)
    assert (record.state, record.outcome, len(record.attempts)) == ("done", OUTCOME, 1)


def test_missed_runs_are_merged_into_one(run_schedule, history):
    """RayCronJob starts a job for each missed time, and all of them find the same time due."""
    job = FakeJob()
    for _ in range(5):
        run_schedule(job, NOW + timedelta(days=3))
    assert len(job.runs) == 1
    assert history.list_times() == ["20261128T0300Z"]


def test_the_folders_of_old_registered_runs_are_removed(run_schedule, history, recipe, tmp_path):
    kept = recipe.model_copy(update={"retention": Retention(scheduled_runs=2)})

    class WritingJob(FakeJob):
        def __call__(self, recipe, run):
            run.write("distilled/student.bin", b"s")
            return super().__call__(recipe, run)

    job = WritingJob(None, TrainingError("diverged"), UserError("no teacher"))
    for days in range(5):
        with suppress(TrainingError, UserError):
            run_schedule(job, NOW + timedelta(days=days), recipe=kept)
    done = [run.scheduled_time for run in history.list_runs() if run.state == "done"]
    written = {uri.rpartition("/")[2] for uri in job.runs}
    left = {path.name for path in (tmp_path / "weekly/runs").iterdir()}
    assert len(done) == 3
    assert left == written - {done[0]}
    assert left - set(done), "a run that was not registered keeps its folder"
    assert done[0] in history.list_times()


@pytest.mark.parametrize("kept", [0, 1])
def test_a_damaged_record_does_not_make_a_registered_run_fail(run_schedule, history, recipe, kept, caplog):
    history.folder.write("20261101T0300Z.json", b"{}")
    history.write(ScheduledRun("20261120T0300Z").begin_attempt(NOW).end_attempt("done", NOW))
    recipe = recipe.model_copy(update={"retention": Retention(scheduled_runs=kept)})
    assert "version 1" in run_schedule(FakeJob(), recipe=recipe)
    assert ("retention.scheduled_runs: nothing more was removed" in caplog.text) == bool(kept)


def test_a_run_that_is_too_late_is_not_started(run_schedule, recipe, history):
    job = FakeJob()
    monthly = load("shapes", ["schedule.cron='0 3 1 * *'"])
    assert run_schedule(job, recipe=monthly) == "20261101T0300Z: is 585.0 hours late; schedule.max_lateness_hours is 24"
    assert not job.runs
    assert not history.list_times()


def test_a_failure_is_recorded_and_retried_up_to_the_limit(run_schedule, history):
    job = FakeJob(TrainingError("it broke"), TrainingError("again"))
    for message in ("it broke", "again"):
        with pytest.raises(TrainingError, match=message):
            run_schedule(job)
    assert [attempt.error for attempt in history.read(SCHEDULED_TIME).attempts] == [
        "TrainingError: it broke",
        "TrainingError: again",
    ]
    assert run_schedule(job) == f"{SCHEDULED_TIME}: failed 2 times: TrainingError: again"
    assert len(job.runs) == 2
    assert len(set(job.runs)) == 1, "a retry uses the folder of the attempt before it"


def test_a_storage_error_is_retried(run_schedule, history):
    job = FakeJob(StorageError("s3://runs: cannot be read: 503"))
    with pytest.raises(StorageError):
        run_schedule(job)
    assert history.read(SCHEDULED_TIME).attempts[0].error == "s3://runs: cannot be read: 503"
    assert "version 1" in run_schedule(job)


def test_a_user_error_is_not_retried(run_schedule, history):
    job = FakeJob(UserError("train.steps: 0 is not allowed"))
    with pytest.raises(UserError):
        run_schedule(job)
    with pytest.raises(UserError, match=f"Scheduled run {SCHEDULED_TIME} was rejected: train.steps: 0 is not allowed"):
        run_schedule(job)  # the error is raised again: the caller must not see a success
    assert len(job.runs) == 1


def test_a_killed_process_counts_as_an_attempt(run_schedule, history):
    history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(NOW))
    assert "version 1" in run_schedule(FakeJob())
    first, second = history.read(SCHEDULED_TIME).attempts
    assert (first.error, second.error) == (DIED, "")


def test_a_run_that_was_killed_too_often_fails(run_schedule, history):
    history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(NOW).begin_attempt(NOW))
    job = FakeJob()
    assert run_schedule(job) == f"{SCHEDULED_TIME}: failed 2 times: {DIED}"
    assert not job.runs
    assert (history.read(SCHEDULED_TIME).state, history.read(SCHEDULED_TIME).reason) == ("failed", DIED)


def test_overlapping_runs_are_skipped(run_schedule, history, tmp_path):
    job = FakeJob()
    with Lease(Folder.from_uri(tmp_path / "weekly"), "scheduled run 20261124T0300Z", 0.5):
        assert run_schedule(job) == f"{SCHEDULED_TIME}: skipped, because scheduled run 20261124T0300Z was still running"
    assert history.read(SCHEDULED_TIME).state == "skipped"
    assert not job.runs
    assert run_schedule(job) == f"{SCHEDULED_TIME}: is already skipped (scheduled run 20261124T0300Z was still running)"


def test_concurrent_calls_of_a_run_run_it_once(run_schedule, history, tmp_path):
    job = FakeJob()
    with Lease(Folder.from_uri(tmp_path / "weekly"), f"scheduled run {SCHEDULED_TIME}", 0.5):
        assert run_schedule(job) == f"{SCHEDULED_TIME}: is already running"
    assert not history.list_times()
    assert "version 1" in run_schedule(job)


def test_a_clock_that_is_set_back_repeats_no_run(run_schedule, history):
    job = FakeJob()
    for day in (-1, 0, 1):
        run_schedule(job, NOW + timedelta(days=day))
    for day in (-1, 0, 1):
        assert run_schedule(job, NOW + timedelta(days=day)).endswith("is already done")
    assert len(job.runs) == 3


def test_a_clock_that_was_once_far_ahead_blocks_no_run(run_schedule, history):
    job = FakeJob()
    run_schedule(job, NOW + timedelta(days=300))
    assert "version 1" in run_schedule(job)
    assert history.list_times() == [SCHEDULED_TIME, "20270921T0300Z"]


@pytest.mark.parametrize("skipped", [True, False])
def test_an_unfinished_run_is_resumed_before_a_later_one(run_schedule, history, skipped):
    """The first attempt died; a later time was due meanwhile and was skipped, or no process was there."""
    history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(NOW))
    if skipped:
        history.write(ScheduledRun("20261126T0300Z", "skipped", "was still running"))
    job = FakeJob()
    later = NOW + timedelta(days=1)
    assert run_schedule(job, later).startswith(f"{SCHEDULED_TIME}: version 1")
    assert [run.rpartition("/")[2] for run in job.runs] == [SCHEDULED_TIME]
    assert history.read("20261126T0300Z").state == "skipped"
    assert run_schedule(job, later).startswith("20261126T0300Z: is already skipped")


def test_an_exhausted_run_is_recorded_as_failed_when_the_next_one_begins(run_schedule, history):
    history.write(ScheduledRun(SCHEDULED_TIME).begin_attempt(NOW).begin_attempt(NOW))
    job = FakeJob()
    run_schedule(job, NOW + timedelta(days=1))
    assert [run.rpartition("/")[2] for run in job.runs] == ["20261126T0300Z"]
    assert (history.read(SCHEDULED_TIME).state, history.read(SCHEDULED_TIME).reason) == ("failed", DIED)


@pytest.mark.parametrize("error", [None, TrainingError("it broke")])
def test_a_run_that_lost_its_lease_does_not_write_the_record(run_schedule, history, tmp_path, error):
    def job(recipe, run):
        store, other = lease_store(history.home, "lease.json"), LeaseRecord("other", "x", 1)
        history.write(record_of_holder)
        start = time.monotonic()
        try:  # the interruption may come as soon as the lease is another's
            while not store.compare_and_swap(store.read()[1], other):
                pass
            time.sleep(60)
        except KeyboardInterrupt:
            assert time.monotonic() - start < 60, "the sleep was not interrupted"
            if error:
                raise error from None
            return OUTCOME
        raise AssertionError("nothing interrupted it")

    record_of_holder = ScheduledRun(SCHEDULED_TIME).begin_attempt(NOW).begin_attempt(NOW)
    with suppress(TrainingError):
        run_schedule(job)
    assert history.read(SCHEDULED_TIME) == record_of_holder


def test_a_transient_error_is_recorded_without_its_secret(run_schedule, history):
    with pytest.raises(TransientError):
        run_schedule(FakeJob(TransientError("tracking-uri: http://me:hush@mlflow does not answer")))
    record = history.read(SCHEDULED_TIME)
    assert (record.state, record.reason) == ("failed", "tracking-uri: http://me:***@mlflow does not answer")


def test_an_outage_before_the_job_counts_as_an_attempt(run_schedule, history, monkeypatch):
    def fail(uri, name):
        raise TransientError("MLflow is unavailable")

    monkeypatch.setattr(version_management, "find_champion", fail)
    with pytest.raises(TransientError):
        run_schedule(FakeJob(), recipe=load("shapes", ["schedule.cron='0 3 * * *'"]))
    assert history.read(SCHEDULED_TIME).attempts[0].error == "MLflow is unavailable"


def test_a_requested_run_is_never_late(run_schedule):
    job = FakeJob()
    assert "version 1" in run_schedule(job, name="20261101T1234Z")
    assert len(job.runs) == 1


@pytest.fixture
def champion(monkeypatch):
    """Return a stand-in for a registry with one champion, which records the downloads."""
    registry = SimpleNamespace(current=version_management.Champion("3", "a" * 64), downloads=[])
    monkeypatch.setattr(version_management, "find_champion", lambda uri, name: registry.current)

    def download(uri, name, folder, version):
        registry.downloads.append(version)
        (folder / "student").mkdir(parents=True)
        (folder / "student/model_index.json").write_text(f"of version {version}, {registry.current.student_sha256}")
        return version, folder

    monkeypatch.setattr(version_download, "download", download)
    return registry


WARM = ["schedule.cron='0 3 * * *'"]


def test_a_run_and_its_retry_start_from_the_same_champion(run_schedule, history, tmp_path, champion):
    warm = load("shapes", WARM)
    job = FakeJob(TrainingError("it broke"))
    with pytest.raises(TrainingError):
        run_schedule(job, recipe=warm)
    champion.current = version_management.Champion("4", "b" * 64)
    run_schedule(job, recipe=warm)
    start = tmp_path / "weekly/champions/3-aaaaaaaaaaaa"
    assert [recipe.student.init for recipe in job.recipes] == [str(start)] * 2
    assert "of version 3" in (start / "model_index.json").read_text()
    assert history.read(SCHEDULED_TIME).started_from == "version 3, student aaaaaaaaaaaa"
    run_schedule(job, NOW + timedelta(days=1), recipe=warm)
    assert job.recipes[-1].student.init.endswith("champions/4-bbbbbbbbbbbb")
    assert champion.downloads == ["3", "4"]


def test_an_incomplete_or_replaced_champion_is_downloaded_again(run_schedule, tmp_path, champion):
    partial = tmp_path / "weekly/champions/3-aaaaaaaaaaaa"
    partial.mkdir(parents=True)
    (partial / "model_index.json").write_text("half")
    run_schedule(FakeJob(), recipe=load("shapes", WARM))
    assert "of version 3" in (partial / "model_index.json").read_text()
    champion.current = version_management.Champion("3", "c" * 64)  # the registry was recreated
    run_schedule(FakeJob(), NOW + timedelta(days=1), recipe=load("shapes", WARM))
    assert "c" * 64 in (tmp_path / "weekly/champions/3-cccccccccccc/model_index.json").read_text()


def test_a_run_without_a_champion_starts_from_the_teacher(run_schedule, history, monkeypatch):
    monkeypatch.setattr(version_management, "find_champion", lambda uri, name: None)
    job = FakeJob()
    run_schedule(job, recipe=load("shapes", ["schedule.cron='0 3 * * *'"]))
    assert job.recipes[0].student.init == ""
    assert history.read(SCHEDULED_TIME).started_from == scheduled_run.TEACHER


def test_an_invalid_record_is_reported(run_schedule, history, tmp_path):
    history.folder.write(f"{SCHEDULED_TIME}.json", b"{]")
    with pytest.raises(UserError, match="expected the record of a run"):
        run_schedule(FakeJob())


def test_runs_are_named_by_their_time():
    assert cron.format_stamp(NOW.replace(hour=3)) == SCHEDULED_TIME
