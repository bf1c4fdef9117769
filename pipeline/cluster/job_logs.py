"""Printing of a submitted job's log until the job ends."""

import asyncio
import sys
import time
from typing import Any, TextIO

from pipeline.cluster.job_client import JobClient
from pipeline.errors import UserError, invalid

BAR = "distil:"  # the prefix of a progress bar's line
MAX_OUTAGE_SECONDS = 300  # longest outage of the job server
PAUSE_SECONDS = 2.0
FAILED, STOPPED = "FAILED", "STOPPED"  # Ray's job states
ENDED = ("SUCCEEDED", FAILED, STOPPED)
STOPPED_CODE = 130


class LogPrinter:
    """Prints each line once, although the server sends lines again; redraws the bar on a terminal."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.terminal = out, out.isatty()
        self.printed, self.in_bar = 0, False

    def begin(self) -> None:
        """Expect the log from its start again."""
        self.seen = 0

    def __call__(self, text: str) -> None:
        """Print the part of the log that was not printed yet."""
        new = text[max(0, self.printed - self.seen) :]
        self.seen += len(text)
        self.printed = max(self.printed, self.seen)
        for line in new.splitlines(keepends=True):
            self._print_line(line)
        self.out.flush()

    def _print_line(self, line: str) -> None:
        bar = line.startswith(BAR) and self.terminal
        if bar and not line.strip():
            return
        if self.in_bar and not bar:
            self.out.write("\n")
        self.out.write(f"\r{line.rstrip()}\x1b[K" if bar else line)
        self.in_bar = bar


def follow_job(client: JobClient, submission_id: str, out: TextIO | None = None) -> int:
    """Print the job's log until it ends; return its exit code, 130 if it was stopped."""
    printer, away_since = LogPrinter(out or sys.stdout), 0.0
    while True:
        try:
            asyncio.run(_print_logs(client, submission_id, printer))
            details = client.get_job_info(submission_id)
            if details.status in ENDED:
                return exit_code(details)
            away_since = 0.0
        except RuntimeError as error:
            if "404" in str(error):
                raise invalid("job", submission_id, "a job of this cluster") from None
            away_since = _check_outage(away_since, error)
        except OSError as error:  # aiohttp's and requests' too
            away_since = _check_outage(away_since, error)
        time.sleep(PAUSE_SECONDS)


async def _print_logs(client: JobClient, submission_id: str, printer: LogPrinter) -> None:
    printer.begin()
    async for text in client.tail_job_logs(submission_id):
        printer(text)


def _check_outage(since: float, error: BaseException) -> float:
    now = time.monotonic()
    if since and now - since > MAX_OUTAGE_SECONDS:
        raise UserError(f"--job-server: the cluster stopped answering: {str(error).splitlines()[0]}") from None
    return since or now


def exit_code(details: Any) -> int:
    """Return the job's own exit code; 1 if it failed before it had one."""
    if details.status == STOPPED:
        return STOPPED_CODE
    return 0 if details.status == "SUCCEEDED" else int(details.driver_exit_code or 1)
