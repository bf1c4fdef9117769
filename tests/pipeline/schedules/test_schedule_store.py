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


def test_a_schedule_is_stored_with_its_whole_recipe(schedules):
    recipe = load("shapes", ["schedule.cron='0 3 * * SUN'", "schedule.timezone='Europe/Berlin'", "train.steps=7"])
    schedules.add("weekly", recipe, "http://mlflow:5000", NOW)
    stored = schedules.read("weekly")
    assert stored.recipe == recipe
    assert (stored.tracking_uri, stored.added_at, stored.paused) == (
        "http://mlflow:5000",
        "2026-11-25T12:00:00+00:00",
        False,
    )
    assert schedules.list_names() == ["weekly"]


def test_removing_a_schedule_keeps_its_history(schedules):
    schedules.add("weekly", load("shapes", ["schedule.cron='0 3 * * SUN'"]), "sqlite://", NOW)
    history = History(schedules.get_folder("weekly"))
    history.write(ScheduledRun("20261122T0300Z", "done"))
    schedules.remove("weekly")
    assert schedules.list_names() == []
    assert history.read("20261122T0300Z").state == "done"
    with pytest.raises(UserError, match="name: got 'weekly'; expected a schedule: there is none yet"):
        schedules.read("weekly")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 64, "a\n"])
def test_a_name_cannot_leave_its_folder(tmp_path, name):
    schedules = ScheduleStore(Folder.from_uri(tmp_path / "store"))
    with pytest.raises(UserError, match="expected letters, digits"):
        schedules.add(name, load("shapes", ["schedule.cron='0 3 * * SUN'"]), "sqlite://")
    assert not (tmp_path / "store").exists()


@pytest.fixture
def run_schedule_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def call(*arguments):
        code = main(["schedule", *arguments, "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return call


def test_the_schedule_commands_from_add_to_remove(run_schedule_command, tmp_path):
    assert run_schedule_command("list")[1] == "no schedules yet; `python -m jobs schedule add` makes one\n"
    code, out, _ = run_schedule_command("add", "weekly", "--cron", "0 3 * * SUN", "--timezone", "Europe/Berlin")
    assert code == 0
    assert "weekly: next Sun " in out
    assert "03:00 CET" in out or "03:00 CEST" in out
    assert "paused" in run_schedule_command("pause", "weekly")[1]
    assert " paused" in run_schedule_command("list")[1]
    assert "next Sun" in run_schedule_command("resume", "weekly")[1]
    assert " runs; `python -m jobs scheduler` submits it" in run_schedule_command("run-now", "weekly")[1]
    run_schedule_command("pause", "weekly")
    assert " runs once, though the schedule is paused; `python" in run_schedule_command("run-now", "weekly")[1]
    assert run_schedule_command("history", "weekly")[1] == "nothing was due yet\n"
    History(Folder.from_uri(tmp_path / "store/weekly")).write(
        ScheduledRun("20261122T0300Z", "skipped", "another still ran")
    )
    assert "20261122T0300Z skipped" in run_schedule_command("list")[1]
    assert "another still ran" in run_schedule_command("history", "weekly")[1]
    assert "its runs and history are in" in run_schedule_command("remove", "weekly")[1]
    assert "another still ran" in run_schedule_command("history", "weekly")[1], "the history of a removed schedule"
    assert "got 'nothing'; expected a schedule" in run_schedule_command("history", "nothing")[2]


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
def test_invalid_arguments_are_reported_in_one_line(run_schedule_command, tmp_path, arguments, message):
    code, _, err = run_schedule_command(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "secret", [["--tracking-uri", "http://me:hush@mlflow"], ["--set", "teacher='https://me:hush@hub/x'"]]
)
def test_a_secret_is_not_stored(run_schedule_command, tmp_path, secret):
    code, _, err = run_schedule_command("add", "weekly", "--cron", "0 3 * * *", *secret)
    assert code == 2
    assert "://me:***@" in err
    assert "hush" not in err
    assert not (tmp_path / "store").exists()


def test_a_duplicate_name_is_rejected(run_schedule_command):
    run_schedule_command("add", "weekly", "--cron", "0 3 * * *")
    code, _, err = run_schedule_command("add", "weekly", "--cron", "0 4 * * *")
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
def test_invalid_arguments_of_run_scheduled_are_reported_in_one_line(capsys, tmp_path, arguments, message):
    assert main(["run-scheduled", "--runs", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_schedule_in_a_bucket_requires_a_tracking_server(bucket, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["schedule", "add", "weekly", "--cron", "0 3 * * *", "--store", f"{bucket}/schedules"]) == 2
    assert "--tracking-uri: got nothing; expected a server" in capsys.readouterr().err
