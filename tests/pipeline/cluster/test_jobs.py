"""Job commands against a real cluster with token authentication."""

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
def run_job_command(client, cluster_url, monkeypatch, capfd):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    def call(*arguments):
        code = main([*arguments, "--job-server", cluster_url])
        return code, *capfd.readouterr()

    return call


def test_a_job_is_packed_run_once_followed_and_listed(run_job_command, client, cluster_url, tmp_path):
    command = ["submit", "prepare", "--run", str(tmp_path / "run"), *SMALL]
    code, out, err = run_job_command(*command)
    assert code == 0, err
    assert "prepared 40 prompts" in out
    assert (tmp_path / "run/prompts/manifest.json").is_file()
    name = out.split()[1]
    code, out, _ = run_job_command(*command)
    assert (code, out.splitlines()[0]) == (0, f"already submitted: {name} (succeeded)")
    assert [job.submission_id for job in client.list_jobs() if job.submission_id].count(name) == 1
    assert SECRET not in json.dumps([job.model_dump() for job in client.list_jobs()], default=str)
    assert name in run_job_command("list")[1]
    assert "succeeded" in run_job_command("status", name[:-8])[1]
    assert "prepared 40 prompts" in run_job_command("logs", name)[1]
    manifest = json.loads((tmp_path / "run/prompts/manifest.json").read_text())
    assert "+" in manifest["code"], "the commit it was submitted from"


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_job_and_a_retry_is_another_job(run_job_command, tmp_path):
    command = ["submit", "evaluate", "--run", str(tmp_path), "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    code, out, _ = run_job_command(*command)
    assert code == 2
    assert "error: " in out
    assert "no complete distill here" in out
    name = out.split()[1]
    code, output, _ = run_job_command(*command, "--no-wait")
    assert (code, output.strip()) == (
        0,
        f"already submitted: {name} (failed); pass --retry to resume it",
    )
    code, retry_output, _ = run_job_command(*command, "--retry", "--no-wait")
    assert code == 0
    assert retry_output.split()[1] == name[:-1] + "2"
    code, output, _ = run_job_command("stop", name[:-2])
    assert (code, output.split(":")[0]) == (0, name[:-1] + "2"), "the latest of two attempts"


@pytest.mark.slow
def test_a_scheduler_job_submits_due_runs_with_its_own_code(run_job_command, client, tmp_path):
    store, tracking = str(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db"
    broken = ["--set", "prompts.sources=[{path='/gone.txt'}]"]
    add = ["schedule", "add", "often", "--store", store, "--cron", "0 0 1 1 *", "--tracking-uri", tracking, *broken]
    assert main(add) == 0
    assert main(["schedule", "run-now", "often", "--store", store]) == 0
    code, out, err = run_job_command("submit", "scheduler", "--store", store, "--once")
    assert code == 0, out + err
    (name,) = [word for word in out.split() if word.startswith("scheduled-often-")]
    code, out, _ = run_job_command("logs", name, "--follow")
    assert code == 2, "an invalid recipe fails the job"
    assert "got '/gone.txt'; expected an existing file" in out
    (record,) = (tmp_path / "store/often/history").glob("*.json")
    assert json.loads(record.read_text())["state"] == "invalid_config"


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
def test_invalid_arguments_are_reported_before_anything_is_sent(
    run_job_command, client, monkeypatch, arguments, message
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = len(client.list_jobs())
    code, _, err = run_job_command("submit", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert len(client.list_jobs()) == before


@pytest.mark.parametrize(
    ("token", "message"),
    [("", "the one here is missing"), ("a1" * 32, "the one here is not the cluster's")],
)
def test_a_wrong_token_is_reported_in_one_line(cluster_url, tmp_path, token, message):
    environment = os.environ | {"HOME": str(tmp_path), "RAY_AUTH_TOKEN": token}
    environment.pop("RAY_AUTH_MODE", None)
    command = [sys.executable, "-m", "jobs", "list", "--job-server", cluster_url]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: token: the cluster at")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not token or token not in result.stderr


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9", "no Ray cluster answers at http://127.0.0.1:9"),
        ("ftp://x", "got 'ftp://x'; expected the job server's URL"),
        ("auto", "--job-server: got 'auto'; expected the job server's URL"),
        ("http://me:hush@host:8265", "a password in it would be logged"),
    ],
)
def test_an_address_without_a_cluster_is_reported_in_one_line(capfd, address, message):
    assert main(["list", "--job-server", address]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "hush" not in err
    assert err.count("\n") == 1


def test_a_silent_server_is_reported_in_one_line(capfd, monkeypatch):
    """A forwarded port whose other end is gone behaves like this."""
    monkeypatch.setattr("pipeline.cluster.job_client.TIMEOUT_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert main(["list", "--job-server", f"127.0.0.1:{silent.getsockname()[1]}"]) == 2
    err = capfd.readouterr().err
    assert "no Ray cluster answers at http://127.0.0.1:" in err
    assert err.count("\n") == 1


def test_an_unknown_job_is_reported(run_job_command):
    code, _, err = run_job_command("status", "nothing")
    assert code == 2
    assert "job: got 'nothing'; expected" in err


def test_another_version_of_ray_is_reported(run_job_command, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "__version__", "2.61.0")
    code, _, err = run_job_command("list")
    assert code == 2
    assert "runs Ray 2.60.0; this machine has 2.61.0; expected the same" in err
