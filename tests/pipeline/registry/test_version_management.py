"""The list, the rollback and the download of versions on the command line."""

import shutil
from pathlib import Path

import mlflow
import pytest

from jobs.__main__ import main
from pipeline.errors import UserError
from pipeline.hashing import hash_folder
from pipeline.registry import descriptions, mlflow_registry, register
from pipeline.registry.version_management import find_champion, list_rows, roll_back

NAME = "nasa-tiny"


@pytest.fixture
def registry_uri(uri, four_versions):
    """Return a copy of the database with four versions, of which 3 is the champion."""
    shutil.copy(four_versions[0], uri.removeprefix("sqlite:///"))
    return uri


def read_champion(client):
    return mlflow_registry.get_aliases(client, NAME)["champion"]


def test_a_model_is_found_among_many(registry_uri):
    """MLflow lists a hundred models at a time."""
    client = mlflow.MlflowClient(registry_uri)
    for number in range(101):
        client.create_registered_model(f"another-{number:03}")
    assert len(mlflow_registry.list_models(client)) == 102
    assert find_champion(registry_uri, NAME).version == "3"
    assert len(find_champion(registry_uri, NAME).student_sha256) == 64
    assert find_champion(registry_uri, "another-000") is None
    assert find_champion(registry_uri, "nothing") is None


def test_the_list_shows_the_champion_and_its_decision(registry_uri, capsys):
    assert main(["models", "--tracking-uri", registry_uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:3]] == [
        ["model", "version", "alias"],
        [NAME, "4", "challenger"],
        [NAME, "3", "champion"],
    ]
    assert "clean_and_right 0.70" in lines[2]
    assert "against version 2: above 0 at 95 % confidence over 52 decisions" in lines[2]
    assert f"champion until {descriptions.get_today()}, replaced by version 3" in lines[3]
    assert [row["step"] for row in list_rows(registry_uri, NAME)] == ["400", "300", "200", "100"]


def test_a_rollback_goes_back_one_champion_at_a_time(registry_uri, client, capsys):
    assert main(["models", "rollback", "--name", NAME, "--tracking-uri", registry_uri]) == 0
    assert "the champion is version 2 again, no longer version 3" in capsys.readouterr().out
    assert read_champion(client) == "2"
    tags = {str(entry.version): entry.tags for entry in mlflow_registry.list_versions(client, NAME)}
    assert tags["3"]["state"] == f"champion until {descriptions.get_today()}, rolled back to version 2"
    assert tags["2"]["state"] == f"champion since {descriptions.get_today()}, rolled back from version 3"
    today = descriptions.get_today()
    assert client.get_registered_model(NAME).description.startswith(
        f"**Champion: version 2**, clean_and_right 0.601 (0.551-0.651): champion since {today}, rolled back"
    )
    assert client.get_model_version(NAME, "3").description.startswith("Champion until")
    assert roll_back(registry_uri, NAME) == {"model": NAME, "from": "2", "to": "1"}
    assert main(["models", "rollback", "--name", NAME, "--tracking-uri", registry_uri]) == 2
    assert (
        "version 1 of nasa-tiny has no champion before it. Register a second student, or pass"
        in capsys.readouterr().err
    )


def test_a_rollback_to_a_version_can_itself_be_rolled_back(registry_uri, client):
    roll_back(registry_uri, NAME, "4")
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "4", "challenger": "3"}
    roll_back(registry_uri, NAME)
    assert read_champion(client) == "3"


def test_a_manual_promotion_is_recorded(registry_uri, client, capsys):
    assert main(["models", "promote", "--name", NAME, "--version", "4", "--tracking-uri", registry_uri]) == 0
    assert capsys.readouterr().out == f"{NAME}: the champion is version 4, no longer 3\n"
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "4", "challenger": "3"}
    assert (
        client.get_model_version(NAME, "4").tags["state"]
        == f"champion since {descriptions.get_today()}, promoted by hand"
    )
    roll_back(registry_uri, NAME)
    assert read_champion(client) == "3"


def test_a_champion_that_is_challenger_for_a_while_stays_a_former_champion(registry_uri, four_versions, client):
    """Version 3 is challenger between a promotion by hand and the next student; a rollback ends before version 1."""
    main(["models", "promote", "--name", NAME, "--version", "4", "--tracking-uri", registry_uri])
    state = client.get_model_version(NAME, "3").tags["state"]
    assert state == f"champion until {descriptions.get_today()}, replaced by hand by version 4"
    assert register.register(four_versions[1](4, mean=0.3), registry_uri).alias == "challenger"
    assert client.get_model_version(NAME, "3").tags["state"] == state
    assert [roll_back(registry_uri, NAME)["to"] for _ in range(3)] == ["3", "2", "1"]
    with pytest.raises(UserError, match="version 1 of nasa-tiny has no champion before it"):
        roll_back(registry_uri, NAME)


def test_the_rule_s_reason_is_not_given_as_that_of_a_person(registry_uri, client):
    main(["models", "promote", "--name", NAME, "--version", "4", "--tracking-uri", registry_uri])
    why = client.get_model_version(NAME, "4").tags["why"]
    for text in (client.get_registered_model(NAME).description, client.get_model_version(NAME, "4").description):
        assert f"promoted by hand. The rule had said: {why}." in text.partition("\n")[0]


def test_registering_a_rolled_back_student_does_not_promote_it(registry_uri, four_versions, client):
    roll_back(registry_uri, NAME)
    assert register.register(four_versions[1](2, mean=0.7), registry_uri).alias != "champion"
    assert read_champion(client) == "2"


def test_an_interrupted_rollback_is_finished_by_the_same_command(registry_uri, four_versions, client, monkeypatch):
    """Each write to the versions is interrupted in turn, before the alias has moved."""
    writes = ("set_model_version_tag", "set_registered_model_alias", "update_model_version")
    for last in range(100):
        shutil.copy(four_versions[0], Path(registry_uri.removeprefix("sqlite:///")))
        with monkeypatch.context() as patch:
            remaining = iter(range(last))
            for name in writes:
                patch.setattr(mlflow.MlflowClient, name, limit_writes(getattr(mlflow.MlflowClient, name), remaining))
            try:
                roll_back(registry_uri, NAME)
            except KeyboardInterrupt:
                assert read_champion(client) == "3"
            else:
                break
        roll_back(registry_uri, NAME)
        assert read_champion(client) == "2", f"interrupted at write {last + 1}"
    assert last > 4


def limit_writes(write, remaining):
    def limited_write(*args, **options):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return write(*args, **options)

    return limited_write


def test_a_download_is_checked(registry_uri, client, tmp_path, capsys):
    assert (
        main(["models", "download", "--name", NAME, "--out", str(tmp_path / "out"), "--tracking-uri", registry_uri])
        == 0
    )
    (student,) = (tmp_path / "out").rglob("student")
    assert hash_folder(student) == client.get_model_version(NAME, "3").tags["student_sha256"]
    assert str(student) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "nasa-gone"], "name: got 'nasa-gone'; expected a registered model: nasa-tiny"),
        (["rollback"], "--name: got nothing; expected a value"),
        (["rollback", "--name", "nasa-gone"], "name: got 'nasa-gone'; expected a registered model: nasa-tiny"),
        (["rollback", "--name", NAME, "--to", "9"], "to: got '9'; expected a version of nasa-tiny: 1, 2, 3, 4"),
        (["rollback", "--name", NAME, "--to", "best"], "to: got 'best'; expected a version of nasa-tiny: 1, 2, 3, 4"),
        (["rollback", "--name", NAME, "--to", "3"], "to: version 3 of nasa-tiny is the champion already"),
        (["download", "--name", NAME], "--out: got nothing; expected a value"),
        (
            ["download", "--name", NAME, "--version", "9", "--out", "x"],
            "version: got '9'; expected a version of nasa-tiny",
        ),
        (["download", "--name", NAME, "--out", "/"], "out: got '/'; expected an empty or a new folder"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(registry_uri, capsys, arguments, message):
    assert main(["models", *arguments, "--tracking-uri", registry_uri]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("tracking_uri", ["http://127.0.0.1:9", "sqlite:////proc/none/ml.db", "nonsense://"])
def test_an_unreachable_store_is_reported(capsys, tracking_uri):
    assert main(["models", "--tracking-uri", tracking_uri]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: tracking-uri: ")


def test_an_empty_registry_says_so(uri, capsys):
    assert main(["models", "--tracking-uri", uri]) == 0
    assert capsys.readouterr().out == "no registered models yet; `python -m jobs register` makes one\n"
