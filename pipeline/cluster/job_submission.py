"""Submission of a `python -m jobs` command as a Ray job: packed, named by its work, submitted once."""

import hashlib
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import lockfile, manifest
from pipeline.cluster.job_client import JobClient
from pipeline.cluster.job_logs import FAILED, STOPPED
from pipeline.cluster.working_dir import RECIPE_FILE, pack
from pipeline.errors import UserError, invalid
from pipeline.redaction import contains_secret, is_secret, redact

SETTINGS = (  # environment variables that are forwarded; none is a secret
    *("MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("HF_ENDPOINT", "HF_HUB_OFFLINE"),
)
FORWARDED_SECRETS = "Set it in the nodes' environment, an instance role or a Kubernetes secret."
SENDS, PAUSE_SECONDS = 5, 2.0
ALL_TRACKED_FILES = "RAY_RUNTIME_ENV_IGNORE_GITIGNORE"  # git decides which files are packed, not Ray


@dataclass(frozen=True)
class Job:
    """A command to run on a Ray cluster.

    Attributes:
        command: a command of `python -m jobs`.
        arguments: its arguments on the cluster.
        recipe_toml: the recipe, which is sent as a file.
        name: the recipe's name.
        scheduled_time: that of a recurring job; "once" otherwise.
        attempt: counted from 1.
        in_image: whether the cluster's image contains the code, so that none is sent.
    """

    command: str
    arguments: tuple[str, ...]
    recipe_toml: str | None = None
    name: str = ""
    scheduled_time: str = "once"
    attempt: int = 1
    in_image: bool = False

    @property
    def id(self) -> str:
        """The submission id: the same for the same work, so that Ray rejects a duplicate."""
        content = "\0".join((self.command, self.recipe_toml or "", *self.arguments))
        short = hashlib.sha256(content.encode()).hexdigest()[:10]
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.command}-{self.name}").strip("-")
        when = re.sub(r"[^A-Za-z0-9]", "", self.scheduled_time)
        return f"{words}-{short}-{when}-{self.attempt}"

    @property
    def entrypoint(self) -> str:
        """The shell command that the job runs."""
        recipe = () if self.recipe_toml is None else ("--recipe", RECIPE_FILE)
        return shlex.join(("python", "-m", "jobs", self.command, *recipe, *self.arguments))


def submit(client: JobClient, job: Job, given: Mapping[str, str] | None = None) -> bool:
    """Submit a job unless the cluster has it; return whether it was submitted now."""
    _reject_secrets(job)
    if find_job(client, job.id):
        return False
    os.environ[ALL_TRACKED_FILES] = "1"
    with tempfile.TemporaryDirectory() as folder:
        return _send(client, job, build_request(job, Path(folder), given))


def build_request(job: Job, folder: Path, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the arguments of Ray's `submit_job`, with the code packed into `folder` unless the image contains it.

    Raises:
        UserError: if the job would show a secret.
    """
    _reject_secrets(job)
    runtime_env: dict[str, Any] = {"env_vars": select_environment(os.environ, given or {})}
    if not job.in_image:
        pack(folder, job.recipe_toml)
        runtime_env["working_dir"] = str(folder)
    metadata = {
        "command": job.command,
        "name": job.name,
        "scheduled_time": job.scheduled_time,
        "attempt": str(job.attempt),
    }
    return {
        "entrypoint": job.entrypoint,
        "submission_id": job.id,
        "runtime_env": runtime_env,
        "metadata": metadata,
    }


def _send(client: JobClient, job: Job, request: dict[str, Any]) -> bool:
    """Submit with retries, which Ray's client does not do; the submission id makes them safe."""
    import requests

    for left in reversed(range(SENDS)):
        try:
            client.submit_job(**request)
            return True
        except requests.RequestException as error:
            if not left:
                raise UserError(f"--job-server: the cluster stopped answering: {type(error).__name__}") from None
            time.sleep(PAUSE_SECONDS)
        except RuntimeError as error:
            if find_job(client, job.id):  # submitted by an earlier attempt or another person
                return False
            raise UserError(f"submit: the cluster refused the job: {str(error).splitlines()[0]}") from None
    raise AssertionError


def find_job(client: JobClient, submission_id: str) -> Any:
    """Return a job's details, or None."""
    return next((job for job in client.list_jobs() if job.submission_id == submission_id), None)


def select_environment(local_environment: Mapping[str, str], overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the job's environment variables; the dashboard shows them, so a secret is an error."""
    forwarded = {name: local_environment[name] for name in SETTINGS if local_environment.get(name)}
    chosen = {manifest.CODE: manifest.get_code_version(), lockfile.PINNED: "1", **forwarded, **overrides}
    for name, value in chosen.items():
        if is_secret(name):
            raise UserError(
                f"--env: {name} looks like a secret, and a job's variables can be read. {FORWARDED_SECRETS}"
            )
        if contains_secret(value):
            raise UserError(f"{name}: a password in it could be read in the cluster. {FORWARDED_SECRETS}")
    return chosen


def _reject_secrets(job: Job) -> None:
    """Reject secrets in the command, which the dashboard shows, and in the recipe, which the cluster stores."""
    for text in (*job.arguments, *(job.recipe_toml or "").splitlines()):
        if contains_secret(text):
            raise UserError(f"submit: the secret in {redact(text)!r} could be read in the cluster. {FORWARDED_SECRETS}")


def choose_attempt(client: JobClient, job: Job, attempt: int, retry: bool) -> Job:
    """Return the job with the requested attempt, else the latest one; with `retry`, the next if that one failed."""
    check_attempt(attempt)
    stem = job.id.rpartition("-")[0]
    jobs = [(str(details.submission_id).rpartition("-"), details.status) for details in client.list_jobs()]
    attempts = {int(number): status for (prefix, _, number), status in jobs if prefix == stem and number.isdigit()}
    latest = max(attempts, default=0)
    again = retry and attempts.get(latest) in (FAILED, STOPPED)
    return replace(job, attempt=attempt or max(1, latest + again))


def check_attempt(attempt: int) -> None:
    """Raise a UserError unless `attempt` is a number of an attempt, or 0 for the latest."""
    if attempt < 0:
        raise invalid("--attempt", attempt, "1 or more")
