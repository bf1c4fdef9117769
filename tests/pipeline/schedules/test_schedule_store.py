from datetime import UTC, datetime

import pytest

from jobs.__main__ import main
from pipeline.errors import UserError
from pipeline.recipe import load
from pipeline.schedules.history import History, ScheduledRun
from pipeline.schedules.schedule_store import ScheduleStore
from pipeline.storage import Folder

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


@pytest.fixture(params=["local", "s3"])
def schedules(request, tmp_path):
    return ScheduleStore(
        Folder.from_uri(request.getfixturevalue("bucket") if request.param == "s3" else tmp_path / "store")
    )


def test_a_schedule_is_kept_with_its_whole_recipe(schedules):
    recipe = load("shapes", ["schedule.cron='0 3 * * SUN'", "schedule.timezone='Europe/Berlin'", "train.steps=7"])
    schedules.add("weekly", recipe, "http://mlflow:5000", NOW)
    found = schedules.read("weekly")
    assert found.recipe == recipe
    assert (found.tracking_uri, found.added_at, found.paused) == (
        "http://mlflow:5000",
        "2026-11-25T12:00:00+00:00",
        False,
    )
    assert schedules.list_names() == ["weekly"]


def test_removing_one_leaves_its_history(schedules):
    schedules.add("weekly", load("shapes", ["schedule.cron='0 3 * * SUN'"]), "sqlite://", NOW)
    past = History(schedules.get_folder("weekly"))
    past.write(ScheduledRun("20261122T0300Z", "done"))
    schedules.remove("weekly")
    assert schedules.list_names() == []
    assert past.read("20261122T0300Z").state == "done"
    with pytest.raises(UserError, match="name: got 'weekly'; expected a schedule: there is none yet"):
        schedules.read("weekly")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 64, "a\n"])
def test_a_name_cannot_leave_its_folder(tmp_path, name):
    schedules = ScheduleStore(Folder.from_uri(tmp_path / "store"))
    with pytest.raises(UserError, match="expected letters, digits"):
        schedules.add(name, load("shapes", ["schedule.cron='0 3 * * SUN'"]), "sqlite://")
    assert not (tmp_path / "store").exists()


@pytest.fixture
def schedule(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def call(*arguments):
        code = main(["schedule", *arguments, "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return call


def test_the_commands_of_a_schedule_s_life(schedule, tmp_path):
    assert schedule("list")[1] == "no schedules yet; `python -m jobs schedule add` makes one\n"
    code, out, _ = schedule("add", "weekly", "--cron", "0 3 * * SUN", "--timezone", "Europe/Berlin")
    assert code == 0
    assert "weekly: next Sun " in out
    assert "03:00 CET" in out or "03:00 CEST" in out
    assert "paused" in schedule("pause", "weekly")[1]
    assert " paused" in schedule("list")[1]
    assert "next Sun" in schedule("resume", "weekly")[1]
    assert " runs; `python -m jobs scheduler` submits it" in schedule("run-now", "weekly")[1]
    schedule("pause", "weekly")
    assert " runs once, though the schedule is paused; `python" in schedule("run-now", "weekly")[1]
    assert schedule("history", "weekly")[1] == "nothing was due yet\n"
    History(Folder.from_uri(tmp_path / "store/weekly")).write(
        ScheduledRun("20261122T0300Z", "skipped", "another still ran")
    )
    assert "20261122T0300Z skipped" in schedule("list")[1]
    assert "another still ran" in schedule("history", "weekly")[1]
    assert "its runs and history are in" in schedule("remove", "weekly")[1]
    assert "another still ran" in schedule("history", "weekly")[1], "of one that was removed"
    assert "got 'nothing'; expected a schedule" in schedule("history", "nothing")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add"], "--name: got nothing; expected a value"),
        (["add", "weekly"], "schedule.cron: got ''; expected five fields. Pass --cron"),
        (["add", "weekly", "--cron", "0 3 * *"], "schedule.cron: got '0 3 * *'; expected five fields"),
        (
            ["add", "weekly", "--cron", "0 3 * * *", "--timezone", "Mars"],
            "schedule.timezone: got 'Mars'; expected an IANA name",
        ),
        (
            ["add", "weekly", "--cron", "0 0 */29 2 SUN#5"],
            "schedule.cron: got '0 0 */29 2 SUN#5'; expected five fields",
        ),
        (
            ["add", "weekly", "--cron", "0 3 * * *", "--set", "schedule.max_lateness_hours=1e300"],
            "schedule.max_lateness_hours: got 1e+300",
        ),
        (
            ["add", "weekly", "--cron", "0 3 * * *", "--set", "schedule.retry_minutes=inf"],
            "schedule.retry_minutes: got inf",
        ),
        (["pause", "nothing"], "name: got 'nothing'; expected a schedule: there is none yet"),
    ],
)
def test_a_mistake_is_one_line(schedule, tmp_path, arguments, message):
    code, _, err = schedule(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "secret", [["--tracking-uri", "http://me:hush@mlflow"], ["--set", "teacher='https://me:hush@hub/x'"]]
)
def test_a_secret_is_not_stored(schedule, tmp_path, secret):
    code, _, err = schedule("add", "weekly", "--cron", "0 3 * * *", *secret)
    assert code == 2
    assert "://me:***@" in err
    assert "hush" not in err
    assert not (tmp_path / "store").exists()


def test_a_second_of_the_same_name_is_refused(schedule):
    schedule("add", "weekly", "--cron", "0 3 * * *")
    code, _, err = schedule("add", "weekly", "--cron", "0 4 * * *")
    assert code == 2
    assert "got 'weekly'; expected a new name" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheduled-time", "../../x"], "--scheduled-time: got '../../x'; expected a UTC time"),
        (["--recipe", "shapes"], "schedule.cron: got ''; expected five fields. Pass --cron"),
        (["--runs", "s3://"], "got 's3://'; expected s3://BUCKET/FOLDER"),
        (["--runs", "s3://b"], "expected s3://BUCKET/FOLDER"),
    ],
)
def test_a_mistake_in_a_tick_is_one_line(capsys, tmp_path, arguments, message):
    assert main(["run-scheduled", "--runs", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_schedule_of_many_machines_does_not_name_a_file_of_this_one(bucket, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["schedule", "add", "weekly", "--cron", "0 3 * * *", "--store", f"{bucket}/schedules"]) == 2
    assert "--tracking-uri: got nothing; expected a server" in capsys.readouterr().err
