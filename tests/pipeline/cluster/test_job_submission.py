import io
from types import SimpleNamespace

import pytest
import requests

from jobs.__main__ import make_parser
from jobs.job_building import collect_variables
from jobs.submit import follow_until_end
from pipeline.cluster import job_logs, job_submission
from pipeline.cluster.job_logs import LogPrinter, exit_code, follow_job
from pipeline.cluster.job_submission import Job, choose_attempt, select_environment, submit
from pipeline.errors import UserError
from pipeline.lockfile import PINNED

JOB = Job("distill", ("--run", "s3://b/run"), "name = 'sd21'", name="sd21")


class FakeClient:
    """A job server that fails `failures` times; with `lost` it accepts the job, and its answer is lost."""

    def __init__(self, failures=0, lost=False):
        self.jobs, self.failures, self.lost, self.sent = {}, failures, lost, []

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]

    def submit_job(self, *, submission_id, **options):
        self.sent.append(options)
        if self.failures:
            self.failures -= 1
            if self.lost:  # the job was accepted, and the answer was lost
                self.jobs[submission_id] = "RUNNING"
            raise requests.ConnectionError("gone")
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.jobs[submission_id] = "PENDING"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(job_submission, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(job_logs, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(job_submission, "pack", lambda folder, recipe: 0)


def test_the_job_id_depends_only_on_the_work():
    same = Job("distill", ("--run", "s3://b/run"), "name = 'sd21'", name="sd21")
    assert JOB.id == same.id
    assert JOB.id.startswith("distill-sd21-")
    assert JOB.id.endswith("-once-1")
    others = [
        Job("distill", ("--run", "s3://b/other"), "name = 'sd21'", name="sd21"),
        Job("distill", ("--run", "s3://b/run"), "name = 'sd21' # 2", name="sd21"),
        Job("distill", ("--run", "s3://b/run"), "name = 'sd21'", name="sd21", attempt=2),
        Job("distill", ("--run", "s3://b/run"), "name = 'sd21'", name="sd21", scheduled_time="20261129T0300Z"),
    ]
    assert len({JOB.id, *(other.id for other in others)}) == 5


def test_arguments_of_the_entrypoint_are_quoted():
    assert Job("prepare", ("--run", "s3://b/$(rm -rf x); y")).entrypoint == (
        "python -m jobs prepare --run 's3://b/$(rm -rf x); y'"
    )


def test_submitting_twice_creates_one_job():
    client = FakeClient()
    assert submit(client, JOB)
    assert not submit(client, JOB)
    assert list(client.jobs) == [JOB.id]


@pytest.mark.parametrize("lost", [False, True])
def test_a_submission_is_retried_during_a_short_outage(lost):
    client = FakeClient(failures=2, lost=lost)
    submit(client, JOB)
    assert list(client.jobs) == [JOB.id]


def test_a_long_outage_is_reported():
    with pytest.raises(UserError, match="the cluster stopped answering"):
        submit(FakeClient(failures=99), JOB)


def test_only_a_failed_job_is_retried_as_another_job():
    client = FakeClient()
    assert choose_attempt(client, JOB, 0, retry=True).attempt == 1
    submit(client, JOB)
    for status in ("PENDING", "RUNNING", "SUCCEEDED"):
        client.jobs[JOB.id] = status
        assert choose_attempt(client, JOB, 0, retry=True).attempt == 1
    client.jobs[JOB.id] = "FAILED"
    second = choose_attempt(client, JOB, 0, retry=True)
    assert second.attempt == 2
    assert submit(client, second)
    assert choose_attempt(client, JOB, 0, retry=False).attempt == 2
    with pytest.raises(UserError, match="--attempt: got -1; expected 1 or more"):
        choose_attempt(client, JOB, -1, retry=False)


def test_settings_are_forwarded_and_secrets_are_not():
    environment = {
        "AWS_ENDPOINT_URL": "http://s3:9000",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "HF_TOKEN": "hush",
        "PATH": "/",
    }
    sent = select_environment(environment, {"NCCL_DEBUG": "INFO"})
    assert sent.items() >= {"AWS_ENDPOINT_URL": "http://s3:9000", "NCCL_DEBUG": "INFO"}.items()
    assert "hush" not in str(sent)
    assert "PATH" not in sent


@pytest.mark.parametrize(("words", "pinned"), [([], "1"), (["--ignore-lock"], "")])
def test_a_job_is_checked_against_the_lock_unless_ignore_lock_is_passed(words, pinned):
    options = make_parser().parse_args(["submit", "prepare", "--run", "/run", *words])
    assert select_environment({}, collect_variables(options))[PINNED] == pinned


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "API_KEY", "MLFLOW_TRACKING_PASSWORD"]
)
def test_a_secret_variable_is_rejected_and_not_printed(name):
    with pytest.raises(UserError, match=f"--env: {name} looks like a secret") as caught:
        select_environment({}, {name: "hush"})
    assert "hush" not in str(caught.value)


def test_a_password_in_a_url_is_rejected_and_not_printed():
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI: a password in it") as caught:
        select_environment({"MLFLOW_TRACKING_URI": "https://me:hush@mlflow"}, {})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("job", "redacted"),
    [
        (Job("distill", ("--tracking-uri", "http://me:hush@m:5000")), "http://me:***@m:5000"),
        (Job("distill", (), "teacher = 'https://me:hush@x/y'"), "https://me:***@x/y"),
        (Job("evaluate", ("--set", "a=b?X-Amz-Signature=hush")), "X-Amz-Signature=***"),
        (Job("evaluate", ("--set", "a=hush-hush-hush")), "a=***"),
    ],
)
def test_a_secret_in_the_command_or_its_recipe_is_rejected_and_redacted(monkeypatch, job, redacted):
    monkeypatch.setenv("HF_TOKEN", "hush-hush-hush")
    client = FakeClient()
    with pytest.raises(UserError, match="could be read in the cluster") as caught:
        submit(client, job)
    assert "hush" not in str(caught.value)
    assert redacted in str(caught.value)
    assert not client.sent


def test_ctrl_c_leaves_the_job_running_and_exits_with_130(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job_logs, "follow_job", interrupted)
    assert follow_until_end(FakeClient(), "run-sd21") == 130
    assert "run-sd21 goes on" in capsys.readouterr().err


class LoggingClient:
    """A client whose log stream breaks after its first part `breaks` times and then starts over."""

    def __init__(self, parts, status="SUCCEEDED", code=0, breaks=1):
        self.parts, self.breaks, self.calls = parts, breaks, 0
        self.details = SimpleNamespace(status=status, driver_exit_code=code)

    async def tail_job_logs(self, submission_id):
        self.calls += 1
        for number, part in enumerate(self.parts):
            if number == 1 and self.calls <= self.breaks:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield part

    def get_job_info(self, submission_id):
        return self.details


def test_each_log_line_is_printed_once_despite_broken_connections():
    out = io.StringIO()
    client = LoggingClient(["one\ntwo\n", "three\nfour\n"], breaks=3)
    assert follow_job(client, "job", out) == 0
    assert out.getvalue() == "one\ntwo\nthree\nfour\n"
    assert client.calls == 4


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_the_exit_code_is_that_of_the_job(status, code, expected):
    assert exit_code(SimpleNamespace(status=status, driver_exit_code=code)) == expected


def test_the_progress_bar_is_drawn_in_place_only_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    text = "begin\ndistil: 1 of 3 steps\ndistil: 2 of 3 steps\nend\n"
    for out, expected in (
        (io.StringIO(), text),
        (Terminal(), "begin\n\rdistil: 1 of 3 steps\x1b[K\rdistil: 2 of 3 steps\x1b[K\nend\n"),
    ):
        printer = LogPrinter(out)
        printer.begin()
        printer(text)
        assert out.getvalue() == expected
