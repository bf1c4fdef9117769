import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from pipeline import cron
from pipeline.errors import StorageError, TrainingError, TransientError, UserError
from pipeline.recipe import load
from pipeline.registry import versions
from pipeline.schedules import tick as ticks
from pipeline.schedules.history import DIED, History, Tick
from pipeline.schedules.lease import Lease, store_of
from pipeline.schedules.tick import run_tick
from pipeline.storage import Folder

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TICK = "20261125T0300Z"
OUTCOME = {"model": "nasa-shapes", "version": "1", "decision": "the first version", "alias": "champion"}


class Work:
    """What a tick does, counted; it raises what it is given, once each."""

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
def tick(tmp_path, recipe):
    def call(job, now=NOW, name=None, recipe=recipe):
        home = Folder.of(tmp_path / "weekly")
        return run_tick(
            recipe, home, f"sqlite:///{tmp_path}/mlflow.db", tick=name, clock=lambda: now, job=job, lease_seconds=0.5
        )

    return call


@pytest.fixture
def past(tmp_path):
    return History(Folder.of(tmp_path / "weekly"))


def test_what_is_due_is_done_once(tick, past, tmp_path):
    work = Work()
    assert tick(work) == f"{TICK}: version 1 of nasa-shapes: the first version"
    assert tick(work) == f"{TICK}: is done already"
    assert work.runs == [str(tmp_path / "weekly/runs" / TICK)]
    record = past.read(TICK)
    assert (record.state, record.outcome, len(record.attempts)) == ("done", OUTCOME, 1)


def test_all_ticks_that_were_missed_are_one(tick, past):
    """RayCronJob starts one job for each; all of them find the same time due."""
    work = Work()
    for _ in range(5):
        tick(work, NOW + timedelta(days=3))
    assert len(work.runs) == 1
    assert past.names() == ["20261128T0300Z"]


def test_what_is_too_late_is_left_out(tick, recipe, past):
    work = Work()
    monthly = load("shapes", ["schedule.cron='0 3 1 * *'"])
    assert tick(work, recipe=monthly) == "20261101T0300Z: is 585.0 hours late; schedule.max_lateness_hours is 24"
    assert not work.runs
    assert not past.names()


def test_a_failure_is_written_down_and_tried_again_as_often_as_the_recipe_says(tick, past):
    work = Work(TrainingError("it broke"), TrainingError("again"))
    for message in ("it broke", "again"):
        with pytest.raises(TrainingError, match=message):
            tick(work)
    assert [each.error for each in past.read(TICK).attempts] == ["TrainingError: it broke", "TrainingError: again"]
    assert tick(work) == f"{TICK}: failed 2 times: TrainingError: again"
    assert len(work.runs) == 2
    assert len(set(work.runs)) == 1, "an attempt goes on where the one before it was"


def test_a_store_that_was_away_is_no_mistake(tick, past):
    work = Work(StorageError("s3://runs: cannot be read: 503"))
    with pytest.raises(StorageError):
        tick(work)
    assert past.read(TICK).attempts[0].error == "s3://runs: cannot be read: 503"
    assert "version 1" in tick(work)


def test_a_mistake_is_not_tried_again(tick, past):
    work = Work(UserError("train.steps: 0 is not allowed"))
    with pytest.raises(UserError):
        tick(work)
    with pytest.raises(UserError, match=f"{TICK} was refused: train.steps: 0 is not allowed"):
        tick(work)  # no success: what started it sees it too
    assert len(work.runs) == 1


def test_a_process_that_was_killed_counts_as_an_attempt(tick, past):
    past.write(Tick(TICK).begun(NOW))
    assert "version 1" in tick(Work())
    first, second = past.read(TICK).attempts
    assert (first.error, second.error) == (DIED, "")


def test_one_that_was_killed_too_often_is_given_up(tick, past):
    past.write(Tick(TICK).begun(NOW).begun(NOW))
    work = Work()
    assert tick(work) == f"{TICK}: failed 2 times: {DIED}"
    assert not work.runs
    assert (past.read(TICK).state, past.read(TICK).why) == ("failed", DIED)


def test_no_overlap(tick, past, tmp_path):
    work = Work()
    with Lease(Folder.of(tmp_path / "weekly"), "tick 20261124T0300Z", 0.5):
        assert tick(work) == f"{TICK}: left out, as tick 20261124T0300Z still ran"
    assert past.read(TICK).state == "skipped"
    assert not work.runs
    assert tick(work) == f"{TICK}: is skipped already (tick 20261124T0300Z still ran)"


def test_the_same_tick_twice_at_once_runs_once(tick, past, tmp_path):
    work = Work()
    with Lease(Folder.of(tmp_path / "weekly"), f"tick {TICK}", 0.5):
        assert tick(work) == f"{TICK}: runs already"
    assert not past.names()
    assert "version 1" in tick(work)


def test_a_clock_that_goes_back_repeats_nothing(tick, past):
    work = Work()
    for day in (-1, 0, 1):
        tick(work, NOW + timedelta(days=day))
    for day in (-1, 0, 1):
        assert tick(work, NOW + timedelta(days=day)).endswith("is done already")
    assert len(work.runs) == 3


def test_a_clock_that_was_far_ahead_for_once_stops_nothing(tick, past):
    work = Work()
    tick(work, NOW + timedelta(days=300))
    assert "version 1" in tick(work)
    assert past.names() == [TICK, "20270921T0300Z"]


@pytest.mark.parametrize("left_out", [True, False])
def test_what_was_begun_goes_on_before_what_is_due_later(tick, past, left_out):
    """It died at its first attempt; meanwhile a later time was due, and was left out or nobody looked."""
    past.write(Tick(TICK).begun(NOW))
    if left_out:
        past.write(Tick("20261126T0300Z", "skipped", "still ran"))
    work = Work()
    later = NOW + timedelta(days=1)
    assert tick(work, later).startswith(f"{TICK}: version 1")
    assert [run.rpartition("/")[2] for run in work.runs] == [TICK]
    assert past.read("20261126T0300Z").state == "skipped"
    assert tick(work, later).startswith("20261126T0300Z: is skipped already")


def test_what_may_not_be_tried_again_is_written_down_when_another_begins(tick, past):
    past.write(Tick(TICK).begun(NOW).begun(NOW))
    work = Work()
    tick(work, NOW + timedelta(days=1))
    assert [run.rpartition("/")[2] for run in work.runs] == ["20261126T0300Z"]
    assert (past.read(TICK).state, past.read(TICK).why) == ("failed", DIED)


@pytest.mark.parametrize("ends", [None, TrainingError("it broke")])
def test_who_lost_the_lease_leaves_the_record_to_who_has_it(tick, past, tmp_path, ends):
    def work(recipe, run):
        store, other = store_of(past.home, "lease.json"), {"holder": "other", "id": "x", "beat": 1}
        while not store.swap(store.read()[1], other):
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

    theirs = Tick(TICK).begun(NOW).begun(NOW)
    with suppress(TrainingError):
        tick(work)
    assert past.read(TICK) == theirs


def test_what_passes_is_tried_again_and_what_is_written_down_shows_no_secret(tick, past):
    with pytest.raises(TransientError):
        tick(Work(TransientError("tracking-uri: http://me:hush@mlflow does not answer")))
    record = past.read(TICK)
    assert (record.state, record.why) == ("failed", "tracking-uri: http://me:***@mlflow does not answer")


def test_an_outage_before_the_job_is_an_attempt_too(tick, past, monkeypatch):
    def away(uri, name):
        raise TransientError("MLflow is away")

    monkeypatch.setattr(versions, "champion", away)
    with pytest.raises(TransientError):
        tick(Work(), recipe=load("shapes", ["schedule.cron='0 3 * * *'"]))
    assert past.read(TICK).attempts[0].error == "MLflow is away"


def test_one_that_is_asked_for_is_not_late(tick):
    work = Work()
    assert "version 1" in tick(work, name="20261101T1234Z")
    assert len(work.runs) == 1


@pytest.fixture
def champion(monkeypatch):
    """A registry with one champion, and what was downloaded."""
    own = SimpleNamespace(now=versions.Champion("3", "a" * 64), downloads=[])
    monkeypatch.setattr(versions, "champion", lambda uri, name: own.now)

    def download(uri, name, folder, version):
        own.downloads.append(version)
        (folder / "student").mkdir(parents=True)
        (folder / "student/model_index.json").write_text(f"of version {version}, {own.now.student_sha256}")
        return {"folder": folder}

    monkeypatch.setattr(versions, "download", download)
    return own


WARM = ["schedule.cron='0 3 * * *'"]


def test_it_starts_from_the_champion_and_a_retry_from_the_same(tick, past, tmp_path, champion):
    warm = load("shapes", WARM)
    work = Work(TrainingError("it broke"))
    with pytest.raises(TrainingError):
        tick(work, recipe=warm)
    champion.now = versions.Champion("4", "b" * 64)
    tick(work, recipe=warm)
    start = tmp_path / "weekly/champions/3-aaaaaaaaaaaa"
    assert [recipe.student.init for recipe in work.recipes] == [str(start)] * 2
    assert "of version 3" in (start / "model_index.json").read_text()
    assert past.read(TICK).started_from == "version 3, student aaaaaaaaaaaa"
    tick(work, NOW + timedelta(days=1), recipe=warm)
    assert work.recipes[-1].student.init.endswith("champions/4-bbbbbbbbbbbb")
    assert champion.downloads == ["3", "4"]


def test_a_champion_that_is_half_there_is_fetched_again_and_another_of_its_number_too(tick, tmp_path, champion):
    half = tmp_path / "weekly/champions/3-aaaaaaaaaaaa"
    half.mkdir(parents=True)
    (half / "model_index.json").write_text("half")
    tick(Work(), recipe=load("shapes", WARM))
    assert "of version 3" in (half / "model_index.json").read_text()
    champion.now = versions.Champion("3", "c" * 64)  # of a registry that began anew
    tick(Work(), NOW + timedelta(days=1), recipe=load("shapes", WARM))
    assert "c" * 64 in (tmp_path / "weekly/champions/3-cccccccccccc/model_index.json").read_text()


def test_without_a_champion_it_starts_from_the_teacher(tick, past, monkeypatch):
    monkeypatch.setattr(versions, "champion", lambda uri, name: None)
    work = Work()
    tick(work, recipe=load("shapes", ["schedule.cron='0 3 * * *'"]))
    assert work.recipes[0].student.init == ""
    assert past.read(TICK).started_from == ticks.TEACHER


def test_a_record_that_is_none_is_one_line(tick, past, tmp_path):
    past.folder.write(f"{TICK}.json", b"{]")
    with pytest.raises(UserError, match="is no record of a tick"):
        tick(Work())


def test_ticks_are_named_by_their_time():
    assert cron.stamp(NOW.replace(hour=3)) == TICK
