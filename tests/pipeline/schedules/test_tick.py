from datetime import UTC, datetime, timedelta

import pytest

from pipeline import cron
from pipeline.errors import StoreError, TrainingError, UserError
from pipeline.recipe import load
from pipeline.registry import versions
from pipeline.schedules import tick as ticks
from pipeline.schedules.history import DIED, History, Tick
from pipeline.schedules.lease import Lease
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
    assert tick(work, recipe=monthly) == "20261101T0300Z: is 585.0 hours late; schedule.late_hours is 24"
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
    work = Work(StoreError("s3://runs: cannot be read: 503"))
    with pytest.raises(StoreError):
        tick(work)
    assert past.read(TICK).attempts[0].error == "s3://runs: cannot be read: 503"
    assert "version 1" in tick(work)


def test_a_mistake_is_not_tried_again(tick, past):
    work = Work(UserError("train.steps: 0 is not allowed"))
    with pytest.raises(UserError):
        tick(work)
    assert tick(work) == f"{TICK}: is refused already (train.steps: 0 is not allowed)"
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
    tick(work)
    assert tick(work, NOW - timedelta(days=3)) == f"20261122T0300Z: is over: {TICK} was begun after it"
    assert len(work.runs) == 1


def test_one_that_is_asked_for_is_not_late(tick):
    work = Work()
    assert "version 1" in tick(work, name="20261101T1234Z")
    assert len(work.runs) == 1


def test_it_starts_from_the_champion_and_a_retry_from_the_same(tick, past, tmp_path, monkeypatch):
    champion = ["3"]
    monkeypatch.setattr(versions, "champion", lambda uri, name: champion[0])

    def download(uri, name, folder, version):
        (folder / "student").mkdir(parents=True)
        (folder / "student/model_index.json").write_text(f"of version {version}")
        return {"folder": folder}

    monkeypatch.setattr(versions, "download", download)
    warm = load("shapes", ["schedule.cron='0 3 * * *'"])
    work = Work(TrainingError("it broke"))
    with pytest.raises(TrainingError):
        tick(work, recipe=warm)
    champion[0] = "4"
    tick(work, recipe=warm)
    start = tmp_path / "weekly/champions/3"
    assert [recipe.student.init for recipe in work.recipes] == [str(start)] * 2
    assert (start / "model_index.json").read_text() == "of version 3"
    assert past.read(TICK).started_from == "version 3"
    tick(work, NOW + timedelta(days=1), recipe=warm)
    assert work.recipes[-1].student.init.endswith("champions/4")


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
