"""A listing of submitted jobs."""

import time
from datetime import UTC, datetime
from typing import Any

from pipeline.cluster.job_client import JobClient
from pipeline.cluster.job_logs import ENDED
from pipeline.errors import invalid

STOP_SECONDS = 60


def list_jobs(client: JobClient) -> list[dict[str, str]]:
    """Return one row per job, newest last."""
    jobs = [job for job in client.list_jobs() if job.submission_id]
    return [describe_job(job) for job in sorted(jobs, key=lambda job: job.start_time or 0)]


def describe_job(job: Any) -> dict[str, str]:
    """Return a job's row; `exit` is the exit code of its command, once it has ended."""
    code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
    return {
        "job": job.submission_id,
        "status": str(getattr(job.status, "value", job.status)).lower(),
        "started": _format_time(job.start_time),
        "took": _format_duration(job),
        "exit": code,
    }


def find_job_details(client: JobClient, submission_id: str) -> Any:
    """Return the job with this id or id prefix; of several attempts at one job, the latest.

    Raises:
        UserError: if no job or several jobs match.
    """
    ids = [job.submission_id for job in client.list_jobs() if job.submission_id]
    matching = [job for job in ids if job == submission_id] or [job for job in ids if job.startswith(submission_id)]
    if len({split_attempt(job)[0] for job in matching}) != 1:
        known = ", ".join(sorted(matching or ids)) or "none yet"
        raise invalid("job", submission_id, f"the id of one job: {known}")
    return client.get_job_info(max(matching, key=split_attempt))


def split_attempt(submission_id: str) -> tuple[str, int]:
    """Return an id's common part and its attempt number, which is 0 for an id of another form."""
    stem, _, number = submission_id.rpartition("-")
    return (stem, int(number)) if stem and number.isdigit() else (submission_id, 0)


def stop_job(client: JobClient, submission_id: str) -> str:
    """Stop a job, wait until it has ended and return its state."""
    if client.get_job_info(submission_id).status in ENDED:
        return "had ended before"
    client.stop_job(submission_id)
    for _ in range(STOP_SECONDS):
        if client.get_job_info(submission_id).status in ENDED:
            return "stopped"
        time.sleep(1)
    return "is stopping"


def _format_time(milliseconds: int | None) -> str:
    return "" if not milliseconds else f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _format_duration(job: Any) -> str:
    if not job.start_time:
        return ""
    seconds = int((job.end_time / 1000 if job.end_time else time.time()) - job.start_time / 1000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
