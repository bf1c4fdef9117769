import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline import cron
from pipeline.errors import StorageError, TrainingError, TransientError, UserError
from pipeline.recipe import load
from pipeline.registry import versions
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.schedules import scheduled_run
from pipeline.schedules.history import DIED, History, ScheduledRun
from pipeline.schedules.lease import Lease, LeaseRecord, lease_store
from pipeline.schedules.scheduled_run import run_scheduled
from pipeline.storage import Folder

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TIME = "20261125T0300Z"
OUTCOME = RegisteredVersion("nasa-shapes", 1, "champion", "models:/nasa-shapes/1", "the first version")


class Work:
    """What a scheduled run does, counted; it raises what it is given, once each."""

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
def run_it(tmp_path, recipe):
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
def past(tmp_path):
    return History(Folder.from_uri(tmp_path / "weekly"))


def test_what_is_due_is_done_once(run_it, past, tmp_path):
    work = Work()
    assert run_it(work) == f"{TIME}: version 1 of nasa-shapes: the first version"
    assert run_it(work) == f"{TIME}: is already done"
    assert work.runs == [str(tmp_path / "weekly/runs" / TIME)]
    record = past.read(TIME)
    assert (record.state, record.outcome, len(record.attempts)) == ("done", OUTCOME, 1)


def test_all_runs_that_were_missed_are_one(run_it, past):
    """RayCronJob starts one job for each; all of them find the same time due."""
    work = Work()
    for _ in range(5):
        run_it(work, NOW + timedelta(days=3))
    assert len(work.runs) == 1
    assert past.times() == ["20261128T0300Z"]


def test_what_is_too_late_is_left_out(run_it, recipe, past):
    work = Work()
    monthly = load("shapes", ["schedule.cron='0 3 1 * *'"])
    assert run_it(work, recipe=monthly) == "20261101T0300Z: is 585.0 hours late; schedule.max_lateness_hours is 24"
    assert not work.runs
    assert not past.times()


def test_a_failure_is_written_down_and_tried_again_as_often_as_the_recipe_says(run_it, past):
    work = Work(TrainingError("it broke"), TrainingError("again"))
    for message in ("it broke", "again"):
        with pytest.raises(TrainingError, match=message):
            run_it(work)
    assert [each.error for each in past.read(TIME).attempts] == ["TrainingError: it broke", "TrainingError: again"]
    assert run_it(work) == f"{TIME}: failed 2 times: TrainingError: again"
    assert len(work.runs) == 2
    assert len(set(work.runs)) == 1, "an attempt is being retried where the one before it was"


def test_a_store_that_was_away_is_no_mistake(run_it, past):
    work = Work(StorageError("s3://runs: cannot be read: 503"))
    with pytest.raises(StorageError):
        run_it(work)
    assert past.read(TIME).attempts[0].error == "s3://runs: cannot be read: 503"
    assert "version 1" in run_it(work)


def test_a_mistake_is_not_tried_again(run_it, past):
    work = Work(UserError("train.steps: 0 is not allowed"))
    with pytest.raises(UserError):
        run_it(work)
    with pytest.raises(UserError, match=f"Scheduled run {TIME} was rejected: train.steps: 0 is not allowed"):
        run_it(work)  # no success: what started it sees it too
    assert len(work.runs) == 1


def test_a_process_that_was_killed_counts_as_an_attempt(run_it, past):
    past.write(ScheduledRun(TIME).begin_attempt(NOW))
    assert "version 1" in run_it(Work())
    first, second = past.read(TIME).attempts
    assert (first.error, second.error) == (DIED, "")


def test_one_that_was_killed_too_often_is_given_up(run_it, past):
    past.write(ScheduledRun(TIME).begin_attempt(NOW).begin_attempt(NOW))
    work = Work()
    assert run_it(work) == f"{TIME}: failed 2 times: {DIED}"
    assert not work.runs
    assert (past.read(TIME).state, past.read(TIME).reason) == ("failed", DIED)


def test_no_overlap(run_it, past, tmp_path):
    work = Work()
    with Lease(Folder.from_uri(tmp_path / "weekly"), "scheduled run 20261124T0300Z", 0.5):
        assert run_it(work) == f"{TIME}: skipped, because scheduled run 20261124T0300Z was still running"
    assert past.read(TIME).state == "skipped"
    assert not work.runs
    assert run_it(work) == f"{TIME}: is already skipped (scheduled run 20261124T0300Z was still running)"


def test_the_same_run_twice_at_once_runs_once(run_it, past, tmp_path):
    work = Work()
    with Lease(Folder.from_uri(tmp_path / "weekly"), f"scheduled run {TIME}", 0.5):
        assert run_it(work) == f"{TIME}: is already running"
    assert not past.times()
    assert "version 1" in run_it(work)


def test_a_clock_that_goes_back_repeats_nothing(run_it, past):
    work = Work()
    for day in (-1, 0, 1):
        run_it(work, NOW + timedelta(days=day))
    for day in (-1, 0, 1):
        assert run_it(work, NOW + timedelta(days=day)).endswith("is already done")
    assert len(work.runs) == 3


def test_a_clock_that_was_far_ahead_for_once_stops_nothing(run_it, past):
    work = Work()
    run_it(work, NOW + timedelta(days=300))
    assert "version 1" in run_it(work)
    assert past.times() == [TIME, "20270921T0300Z"]


@pytest.mark.parametrize("left_out", [True, False])
def test_what_was_begun_goes_on_before_what_is_due_later(run_it, past, left_out):
    """It died at its first attempt; meanwhile a later time was due, and was left out or nobody looked."""
    past.write(ScheduledRun(TIME).begin_attempt(NOW))
    if left_out:
        past.write(ScheduledRun("20261126T0300Z", "skipped", "was still running"))
    work = Work()
    later = NOW + timedelta(days=1)
    assert run_it(work, later).startswith(f"{TIME}: version 1")
    assert [run.rpartition("/")[2] for run in work.runs] == [TIME]
    assert past.read("20261126T0300Z").state == "skipped"
    assert run_it(work, later).startswith("20261126T0300Z: is already skipped")


def test_what_may_not_be_tried_again_is_written_down_when_another_begins(run_it, past):
    past.write(ScheduledRun(TIME).begin_attempt(NOW).begin_attempt(NOW))
    work = Work()
    run_it(work, NOW + timedelta(days=1))
    assert [run.rpartition("/")[2] for run in work.runs] == ["20261126T0300Z"]
    assert (past.read(TIME).state, past.read(TIME).reason) == ("failed", DIED)


@pytest.mark.parametrize("ends", [None, TrainingError("it broke")])
def test_who_lost_the_lease_leaves_the_record_to_who_has_it(run_it, past, tmp_path, ends):
    def work(recipe, run):
        store, other = lease_store(past.home, "lease.json"), LeaseRecord("other", "x", 1)
        while not store.compare_and_swap(store.read()[1], other):
            pass
        past.write(theirs)
        began = time.monotonic()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            assert time.monotonic() - began < 60, "nothing woke it"
            if ends:
                raise ends from None
            return OUTCOME
        raise AssertionError("nothing interrupted it")

    theirs = ScheduledRun(TIME).begin_attempt(NOW).begin_attempt(NOW)
    with suppress(TrainingError):
        run_it(work)
    assert past.read(TIME) == theirs


def test_what_passes_is_tried_again_and_what_is_written_down_shows_no_secret(run_it, past):
    with pytest.raises(TransientError):
        run_it(Work(TransientError("tracking-uri: http://me:hush@mlflow does not answer")))
    record = past.read(TIME)
    assert (record.state, record.reason) == ("failed", "tracking-uri: http://me:***@mlflow does not answer")


def test_an_outage_before_the_job_is_an_attempt_too(run_it, past, monkeypatch):
    def away(uri, name):
        raise TransientError("MLflow is away")

    monkeypatch.setattr(versions, "find_champion", away)
    with pytest.raises(TransientError):
        run_it(Work(), recipe=load("shapes", ["schedule.cron='0 3 * * *'"]))
    assert past.read(TIME).attempts[0].error == "MLflow is away"


def test_one_that_is_asked_for_is_not_late(run_it):
    work = Work()
    assert "version 1" in run_it(work, name="20261101T1234Z")
    assert len(work.runs) == 1


@pytest.fixture
def champion(monkeypatch):
    """A registry with one champion, and what was downloaded."""
    own = SimpleNamespace(now=versions.Champion("3", "a" * 64), downloads=[])
    monkeypatch.setattr(versions, "find_champion", lambda uri, name: own.now)

    def download(uri, name, folder, version):
        own.downloads.append(version)
        (folder / "student").mkdir(parents=True)
        (folder / "student/model_index.json").write_text(f"of version {version}, {own.now.student_sha256}")
        return version, folder

    monkeypatch.setattr(versions, "download", download)
    return own


WARM = ["schedule.cron='0 3 * * *'"]


def test_it_starts_from_the_champion_and_a_retry_from_the_same(run_it, past, tmp_path, champion):
    warm = load("shapes", WARM)
    work = Work(TrainingError("it broke"))
    with pytest.raises(TrainingError):
        run_it(work, recipe=warm)
    champion.now = versions.Champion("4", "b" * 64)
    run_it(work, recipe=warm)
    start = tmp_path / "weekly/champions/3-aaaaaaaaaaaa"
    assert [recipe.student.init for recipe in work.recipes] == [str(start)] * 2
    assert "of version 3" in (start / "model_index.json").read_text()
    assert past.read(TIME).started_from == "version 3, student aaaaaaaaaaaa"
    run_it(work, NOW + timedelta(days=1), recipe=warm)
    assert work.recipes[-1].student.init.endswith("champions/4-bbbbbbbbbbbb")
    assert champion.downloads == ["3", "4"]


def test_a_champion_that_is_half_there_is_fetched_again_and_another_of_its_number_too(run_it, tmp_path, champion):
    half = tmp_path / "weekly/champions/3-aaaaaaaaaaaa"
    half.mkdir(parents=True)
    (half / "model_index.json").write_text("half")
    run_it(Work(), recipe=load("shapes", WARM))
    assert "of version 3" in (half / "model_index.json").read_text()
    champion.now = versions.Champion("3", "c" * 64)  # of a registry that began anew
    run_it(Work(), NOW + timedelta(days=1), recipe=load("shapes", WARM))
    assert "c" * 64 in (tmp_path / "weekly/champions/3-cccccccccccc/model_index.json").read_text()


def test_without_a_champion_it_starts_from_the_teacher(run_it, past, monkeypatch):
    monkeypatch.setattr(versions, "find_champion", lambda uri, name: None)
    work = Work()
    run_it(work, recipe=load("shapes", ["schedule.cron='0 3 * * *'"]))
    assert work.recipes[0].student.init == ""
    assert past.read(TIME).started_from == scheduled_run.TEACHER


def test_a_record_that_is_none_is_one_line(run_it, past, tmp_path):
    past.folder.write(f"{TIME}.json", b"{]")
    with pytest.raises(UserError, match="expected the record of a run"):
        run_it(Work())


def test_runs_are_named_by_their_time():
    assert cron.format_stamp(NOW.replace(hour=3)) == TIME
