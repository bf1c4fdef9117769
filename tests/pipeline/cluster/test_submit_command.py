"""The command that `submit --dry-run` prints, read by Ray's own parser, beside the real submission."""

import shlex
from pathlib import Path

import pytest
from ray.dashboard.modules.job import cli as ray_cli

from jobs import submit as submit_command
from jobs.__main__ import main, make_parser
from pipeline.cluster import job_client, job_submission
from pipeline.cluster.job_submission import ALL_TRACKED_FILES
from pipeline.cluster.working_dir import RECIPE_FILE
from pipeline.recipe import load

RUN = ["run", "--recipe", "shapes-full", "--run", "s3://b/it's $HOME", "--tracking-uri", "http://mlflow:5000"]
COMMANDS = [
    RUN,
    [*RUN, "--in-image", "--set", "train.steps=7"],
    ["distill", *RUN[1:], "--attempt", "3", "--env", "NCCL_DEBUG=INFO", "--no-wait"],
    ["scheduler", "--store", "s3://b/schedules"],
    ["prepare", "--recipe", "shapes", "--run", "/nfs/run"],
]


class RecordingClient:
    """A job server's client that records what is submitted, and the recipe that lies in the working directory."""

    def __init__(self, *_, **__):
        self.request, self.recipe = {}, None

    def list_jobs(self):
        return []

    def get_version(self):
        return "4"

    def submit_job(self, **request):
        self.request = {name: value for name, value in request.items() if value is not None}
        folder = self.request["runtime_env"].pop("working_dir", None)
        file = Path(folder or "none") / RECIPE_FILE
        self.recipe = file.read_text() if file.is_file() else None
        self.packs = folder is not None
        return request["submission_id"]


@pytest.fixture(autouse=True)
def _pack_the_recipe_alone(monkeypatch, tmp_path):
    def write_recipe(folder, recipe):
        if recipe:
            (folder / RECIPE_FILE).write_text(recipe)

    monkeypatch.setattr(job_submission, "pack", write_recipe)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.fixture
def printed(capsys, monkeypatch):
    """Return a function that makes a dry run, and returns what it prints; a connection fails the test."""

    def print_command(words, code=0):
        with monkeypatch.context() as patch:
            patch.setattr(job_client, "connect", lambda *_: pytest.fail("connected"))
            assert main(["submit", *words, "--dry-run"]) == code
        return capsys.readouterr()

    return print_command


def submit_with_ray(command, monkeypatch):
    """Run a printed command through Ray's own command line, with a recording client."""
    client = RecordingClient()
    monkeypatch.setattr(ray_cli, "_get_sdk_client", lambda *_, **__: client)
    monkeypatch.setattr(ray_cli, "_tail_logs", _end_at_once)
    words = [word for word in shlex.split(command) if not word.startswith(f"{ALL_TRACKED_FILES}=")]
    assert words[:3] == ["ray", "job", "submit"]
    ray_cli.submit.main(words[3:], standalone_mode=False)
    return client


async def _end_at_once(*_):
    return "SUCCEEDED"


def submit_really(words, monkeypatch):
    client = RecordingClient()
    monkeypatch.setattr(job_client, "connect", lambda *_: client)
    monkeypatch.setattr(submit_command, "follow_until_end", lambda *_: 0)
    assert main(["submit", *words]) == 0
    return client


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:1] + words[7:]))
def test_the_printed_command_sends_what_submit_sends(words, printed, monkeypatch, capsys):
    output = printed(words)
    by_ray = submit_with_ray(output.out, monkeypatch)
    really = submit_really(words, monkeypatch)
    assert by_ray.request == really.request
    assert (by_ray.recipe, by_ray.packs) == (really.recipe, really.packs)
    assert output.out.startswith(f"{ALL_TRACKED_FILES}=1 ray ") == by_ray.packs
    entrypoint = shlex.split(by_ray.request["entrypoint"])
    assert entrypoint[:3] == ["python", "-m", "jobs"]
    options = make_parser().parse_args(entrypoint[3:])
    assert options.command == words[0]
    assert (options.store if words[0] == "scheduler" else options.run) in words
    if by_ray.packs:
        folder = output.err.split()[2].rstrip(";")
        assert f"--working-dir {folder} " in output.out
    else:
        assert output.err == ""
        assert not by_ray.recipe


def test_the_packed_recipe_is_the_resolved_one(printed, monkeypatch, tmp_path):
    client = submit_with_ray(printed([*RUN, "--set", "train.steps=7"]).out, monkeypatch)
    file = tmp_path / "sent.toml"
    file.write_text(client.recipe)
    assert load(str(file)) == load("shapes-full", ["train.steps=7"])


def test_the_address_is_the_one_that_submit_uses(printed, monkeypatch):
    words = [*RUN, "--in-image"]
    assert "--address http://127.0.0.1:8265 " in printed(words).out
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "head:8265/")
    assert "--address http://head:8265 " in printed(words).out
    assert "--address https://ray.example " in printed([*words, "--job-server", "https://ray.example"]).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--env", "HF_TOKEN=hush-hush-hush"], "--env: HF_TOKEN looks like a secret"),
        (["--set", "name=hush-hush-hush"], "submit: the secret in "),
        (["--job-server", "http://me:hush@head"], "--job-server: a password in it would be logged"),
        (["--retry"], "--retry: the number of the next attempt is the cluster's. Pass --attempt N"),
        (["--attempt", "-1"], "--attempt: got -1; expected 1 or more"),
    ],
)
def test_an_error_prints_no_command_and_leaves_no_folder(words, message, printed, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hush-hush-hush")
    output = printed([*RUN, *words], code=2)
    assert message in output.err
    assert "hush" not in output.err
    assert output.out == ""
    assert not list(tmp_path.iterdir())


def test_a_user_name_in_the_address_is_redacted(printed):
    output = printed([*RUN, "--in-image", "--job-server", "https://hush@head"])
    assert "--address 'https://***@head' " in output.out
