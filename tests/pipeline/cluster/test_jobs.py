"""Against a real cluster with a token, through the command line."""

import json
import os
import socket
import subprocess
import sys

import pytest

from jobs.__main__ import main
from pipeline import ROOT

SMALL = ["--set", "prompts.count=40", "--set", "prompts.negative_draws=20", "--set", "train.batch_size=8"]
SECRET = "hush-hush-hush"


@pytest.fixture
def submit(client, cluster_url, monkeypatch, capfd):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    def call(*arguments):
        code = main([*arguments, "--job-server", cluster_url])
        return code, *capfd.readouterr()

    return call


def test_a_job_is_packed_run_once_followed_and_listed(submit, client, cluster_url, tmp_path):
    command = ["submit", "prepare", "--run", str(tmp_path / "run"), *SMALL]
    code, out, err = submit(*command)
    assert code == 0, err
    assert "prepared 40 prompts" in out
    assert (tmp_path / "run/prompts/manifest.json").is_file()
    name = out.split()[1]
    code, out, _ = submit(*command)
    assert (code, out.splitlines()[0]) == (0, f"already submitted: {name} (succeeded)")
    assert [job.submission_id for job in client.list_jobs() if job.submission_id].count(name) == 1
    assert SECRET not in json.dumps([job.model_dump() for job in client.list_jobs()], default=str)
    assert name in submit("list")[1]
    assert "succeeded" in submit("status", name[:-8])[1]
    assert "prepared 40 prompts" in submit("logs", name)[1]
    manifest = json.loads((tmp_path / "run/prompts/manifest.json").read_text())
    assert "+" in manifest["code"], "the commit it was submitted from"


def test_the_job_s_exit_code_is_the_command_s_and_a_retry_is_another_job(submit, tmp_path):
    command = ["submit", "evaluate", "--run", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    code, out, _ = submit(*command)
    assert code == 2
    assert "error: " in out
    assert "no complete distill here" in out
    name = out.split()[1]
    code, told, _ = submit(*command, "--no-wait")
    assert (code, told.strip()) == (
        0,
        f"already submitted: {name} (failed); pass --retry to resume it",
    )
    code, again, _ = submit(*command, "--retry", "--no-wait")
    assert code == 0
    assert again.split()[1] == name[:-1] + "2"
    code, told, _ = submit("stop", name[:-2])
    assert (code, told.split(":")[0]) == (0, name[:-1] + "2"), "of two attempts the latest"


@pytest.mark.slow
def test_a_scheduler_that_is_a_job_submits_what_is_due_with_its_own_code(submit, client, tmp_path):
    store, tracking = str(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db"
    broken = ["--set", "prompts.sources=[{path='/gone.txt'}]"]
    add = ["schedule", "add", "often", "--store", store, "--cron", "0 0 1 1 *", "--tracking-uri", tracking, *broken]
    assert main(add) == 0
    assert main(["schedule", "run-now", "often", "--store", store]) == 0
    code, out, err = submit("submit", "scheduler", "--store", store, "--once")
    assert code == 0, out + err
    (name,) = [word for word in out.split() if word.startswith("scheduled-often-")]
    code, out, _ = submit("logs", name, "--follow")
    assert code == 2, "the mistake in the recipe is the job's"
    assert "got '/gone.txt'; expected an existing file" in out
    (tick,) = (tmp_path / "store/often/history").glob("*.json")
    assert json.loads(tick.read_text())["state"] == "refused"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--run", "runs/x"], "--run: got 'runs/x'; expected s3://, or an absolute path"),
        (["distill", "--run", "/runs/x"], "--tracking-uri: got nothing; expected a server"),
        (["prepare", "--run", "/runs/x", "--set", "train.steps=-1"], "train.steps: got -1; expected a number above 0"),
        (["prepare", "--run", "/runs/x", "--prompts", "mine.txt"], "prompts.sources: got 'mine.txt'; expected s3://"),
        (
            ["run", "--run", "s3://b/x", "--recipe", "sd21", "--tracking-uri", "http://m"],
            "got 'journeydb/*.jsonl*'; expected s3://",
        ),
        (
            ["distill", "--run", "s3://b/x", "--tracking-uri", "http://me:hush@m"],
            "secret in 'http://me:***@m' could be",
        ),
        (["prepare", "--run", "/runs/x", "--env", "A"], "--env: got 'A'; expected NAME=VALUE"),
        (["prepare", "--run", "/runs/x", "--env", "HF_TOKEN=hush"], "--env: HF_TOKEN looks like a secret"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(submit, client, monkeypatch, arguments, message):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = len(client.list_jobs())
    code, _, err = submit("submit", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert len(client.list_jobs()) == before


@pytest.mark.parametrize(
    ("token", "message"),
    [("", "the one here is missing"), ("a1" * 32, "the one here is not the cluster's")],
)
def test_another_token_is_one_line(cluster_url, tmp_path, token, message):
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": token}
    environment.pop("RAY_AUTH_MODE", None)
    command = [sys.executable, "-m", "jobs", "list", "--job-server", cluster_url]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: token: the cluster at")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not token or token not in ended.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9", "no Ray cluster answers at http://127.0.0.1:9"),
        ("ftp://x", "got 'ftp://x'; expected the job server's URL"),
        ("auto", "--job-server: got 'auto'; expected the job server's URL"),
        ("http://me:hush@host:8265", "a password in it would be logged"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(capfd, address, message):
    assert main(["list", "--job-server", address]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "hush" not in err
    assert err.count("\n") == 1


def test_a_server_that_does_not_answer_is_one_line(capfd, monkeypatch):
    """Such as a forwarded port whose other end is gone."""
    monkeypatch.setattr("pipeline.cluster.job_client.TIMEOUT_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert main(["list", "--job-server", f"127.0.0.1:{silent.getsockname()[1]}"]) == 2
    err = capfd.readouterr().err
    assert "no Ray cluster answers at http://127.0.0.1:" in err
    assert err.count("\n") == 1


def test_an_unknown_job_is_one_line(submit):
    code, _, err = submit("status", "nothing")
    assert code == 2
    assert "job: got 'nothing'; expected" in err


def test_another_version_of_ray_is_one_line(submit, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "__version__", "2.61.0")
    code, _, err = submit("list")
    assert code == 2
    assert "runs Ray 2.60.0, here is 2.61.0; expected the same" in err
