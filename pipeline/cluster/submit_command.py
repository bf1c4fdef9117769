"""The `ray job submit` command that sends a job as `job_submission.submit` does."""

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cluster.job_client import resolve_address
from pipeline.cluster.job_submission import ALL_TRACKED_FILES, Job, build_request, check_attempt
from pipeline.redaction import redact


def prepare_command(
    job: Job, address: str | None, attempt: int, no_wait: bool, given: Mapping[str, str]
) -> tuple[str, Path | None]:
    """Pack a job's code into a new folder, and return the command that sends it and the folder.

    Args:
        job: what to run.
        address: the job server's URL; nothing connects to it.
        attempt: the number of the attempt; 0 is the first.
        no_wait: whether the command ends after submitting.
        given: environment variables of the job beside the forwarded ones.

    Returns:
        The command, with secrets redacted, and the folder, or None if the image contains the code.
    """
    check_attempt(attempt)
    url = resolve_address(address)
    job = replace(job, attempt=attempt or 1)
    folder = Path(tempfile.mkdtemp(prefix="nasa-distill-"))
    try:
        request = build_request(job, folder, given)
    except BaseException:
        shutil.rmtree(folder)
        raise
    if job.in_image:
        folder.rmdir()
    return format_command(request, url, no_wait), None if job.in_image else folder


def format_command(request: Mapping[str, Any], address: str, no_wait: bool) -> str:
    """Return the shell command for a request to the job server at `address`, with secrets redacted."""
    runtime_env = dict(request["runtime_env"])
    working_dir = runtime_env.pop("working_dir", None)
    words = ["ray", "job", "submit", "--address", address, "--submission-id", request["submission_id"]]
    words += ["--working-dir", working_dir] if working_dir else []
    words += ["--runtime-env-json", json.dumps(runtime_env), "--metadata-json", json.dumps(request["metadata"])]
    words += ["--no-wait"] if no_wait else []
    words += ["--", *shlex.split(request["entrypoint"])]
    setting = f"{ALL_TRACKED_FILES}=1 " if working_dir else ""
    return setting + shlex.join(redact(word) for word in words)
