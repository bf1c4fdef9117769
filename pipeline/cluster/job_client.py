"""The client of Ray's job server; each reason for not reaching it is an error of one line."""

import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pipeline.errors import UserError, get_first_line, invalid

DEFAULT = "http://127.0.0.1:8265"
TIMEOUT_SECONDS = 10
REQUEST_FAILED_PREFIX = "Request failed"  # the prefix of Ray's message for a rejected request
TOKEN_FILE = Path("~/.ray/auth_token")


class JobClient(Protocol):
    """The part of `ray.job_submission.JobSubmissionClient` that this project uses."""

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: Any, metadata: dict[str, str]) -> str:
        """Submit a job; return its submission id."""

    def list_jobs(self) -> list[Any]:
        """Return the details of all jobs."""

    def get_job_info(self, job_id: str) -> Any:
        """Return the details of a job."""

    def stop_job(self, job_id: str) -> bool:
        """Stop a job; tell whether it was running."""

    def get_job_logs(self, job_id: str) -> str:
        """Return the logs of a job so far."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """Yield the logs of a job as they are written."""

    def get_address(self) -> str:
        """Return the job server's URL."""


def connect(address: str | None = None) -> JobClient:
    """Return a `ray.job_submission.JobSubmissionClient` that has answered.

    Args:
        address: the job server's URL; by default RAY_API_SERVER_ADDRESS, or port 8265 of this machine.

    Raises:
        UserError: if nothing answers, the token is not the cluster's, or it runs another version of Ray.
    """
    address = resolve_address(address)
    _check_reachable(address)
    token = find_token()
    import logging

    import ray
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for noisy in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)
    try:
        # Ray sends no token unless RAY_AUTH_MODE was set before its import
        client = JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
        version = client.get_version()
        client.list_jobs()  # unlike the version, it needs the token
    except AuthenticationError:
        raise UserError(_describe_token_error(address, token)) from None
    except (requests.RequestException, ConnectionError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--job-server: got {address!r}, which is no Ray job server ({get_first_line(error)}); "
            f"expected a URL such as {DEFAULT}."
        ) from None
    server = getattr(client, "_server_ray_version", None) or version
    if server != ray.__version__:
        raise UserError(
            f"--job-server: the cluster at {address} runs Ray {server}; this machine has {ray.__version__}; "
            "expected the same version."
        )
    return client


@contextmanager
def connect_to_cluster(address: str | None = None) -> Iterator[JobClient]:
    """Connect to a cluster; raise a UserError also if it stops answering inside the context."""
    client = connect(address)
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield client
    except AuthenticationError:
        raise UserError(_describe_token_error(client.get_address(), find_token())) from None
    except (requests.RequestException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(REQUEST_FAILED_PREFIX):
            raise
        raise UserError(
            f"--job-server: the cluster at {client.get_address()} stopped answering: {get_first_line(error)}. "
            "Run the same command again when it is back."
        ) from None


def connect_from_job(address: str | None = None) -> JobClient:
    """Return a client of the cluster that this job runs on."""
    if address is None and os.environ.get("RAY_ADDRESS"):
        from ray.dashboard.utils import get_address_for_submission_client

        address = get_address_for_submission_client(os.environ["RAY_ADDRESS"])
    return connect(address)


def resolve_address(address: str | None = None) -> str:
    """Return the job server's URL; by default RAY_API_SERVER_ADDRESS, or port 8265 of this machine."""
    return _normalize_address(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT)


def _normalize_address(address: str) -> str:
    """Return the address with a scheme and without a trailing slash."""
    given = address if "://" in address else f"http://{address}"
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.hostname == "auto":
        raise invalid("--job-server", address, f"the job server's URL, such as {DEFAULT}")
    if parts.password:
        raise UserError("--job-server: a password in it would be logged. Use the cluster's token.")
    return given.rstrip("/")


def _check_reachable(address: str) -> None:
    """Check that the server answers: Ray's own client would wait for ever, for example for a dead forwarded port."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the server answers; Ray's client reports the error
    except (OSError, ValueError, HTTPException) as error:
        raise UserError(
            f"--job-server: no Ray cluster answers at {address} ({get_first_line(error)}). "
            "Start one, or forward port 8265 of its head node."
        ) from None


def find_token() -> str:
    """Return the token that Ray would find, or an empty string."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE).expanduser()
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _describe_token_error(address: str, token: str) -> str:
    problem = "is not the cluster's" if token else "is missing"
    return (
        f"token: the cluster at {address} asks for one, and the one here {problem}. "
        f"Put the cluster's token into RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH or {TOKEN_FILE}."
    )
