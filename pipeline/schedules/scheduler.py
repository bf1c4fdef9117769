"""The scheduler: a Ray job that submits the runs that are due, and keeps no state besides the schedules' folder.

It polls every few seconds, by the clock and the history. A second scheduler on the same folder does no harm: the jobs
have the same ids.
"""

import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import ROOT
from pipeline.cluster.job_client import JobClient
from pipeline.cluster.job_logs import ENDED, STOPPED
from pipeline.cluster.job_submission import select_environment
from pipeline.cluster.working_dir import pack
from pipeline.errors import UserError, get_first_line
from pipeline.notifications import notify_missed
from pipeline.ray_session import get_submitted_environment
from pipeline.redaction import redact
from pipeline.schedules import history
from pipeline.schedules.due_action import DueAction, JobOutcome, find_due_action
from pipeline.schedules.history import FAILED, MISSED, History, ScheduledRun
from pipeline.schedules.lease import LeaseObserver
from pipeline.schedules.prometheus import ScheduleGauges
from pipeline.schedules.schedule_store import ScheduleStore, StoredSchedule

POLL_SECONDS = 5.0
logger = logging.getLogger(__name__)


class Scheduler:
    """Submits the runs of one store of schedules to one cluster."""

    def __init__(
        self,
        store: ScheduleStore,
        client: JobClient,
        log: Callable[[str], None] = print,
        gauges: ScheduleGauges | None = None,
    ) -> None:
        self.store, self.client, self._gauges = store, client, gauges
        self._log: Callable[[str], None] = lambda line: log(redact(line))
        self._failures: dict[str, str] = {}
        self._observers: dict[str, LeaseObserver] = {}
        self._package = TemporaryDirectory()  # lives as long as the scheduler

    def poll(self, now: datetime) -> None:
        """Handle every schedule once; a failure of one schedule leaves the others alone."""
        names: list[str] = []
        with self._report_failures(self.store.folder.uri):
            names = self.store.list_names()
            if self._gauges:
                self._gauges.end_removed(names)
        for name in names:
            with self._report_failures(name):
                self._handle(self.store.read(name), now)

    @contextmanager
    def _report_failures(self, subject: str) -> Iterator[None]:
        """Report each distinct failure once, until it changes or clears."""
        try:
            yield
            self._failures.pop(subject, None)
        except Exception as error:
            line = (
                get_first_line(error)
                if isinstance(error, UserError)
                else f"{type(error).__name__}: {get_first_line(error)}"
            )
            if self._failures.get(subject) != line:
                self._log(f"{subject}: {line}")
                logger.debug("schedule failed", exc_info=error)
            self._failures[subject] = line

    def _handle(self, schedule: StoredSchedule, now: datetime) -> None:
        runs = History(self.store.get_folder(schedule.name))
        if self._gauges:
            with self._report_failures(f"gauges of {schedule.name}"):  # they must not hold up the run
                self._gauges.report(schedule, runs, now)
        action = find_due_action(schedule, runs, now, lambda run: self._find_job_outcome(schedule, run))
        if action is None:
            return
        if action.record:
            self._record(schedule, runs, action.expected, action.record)
            return
        submission_id = build_submission_id(schedule.name, action.scheduled_time, action.attempt)
        status = self._get_job_status(submission_id)
        if status is None:
            self._submit(schedule, action, submission_id)
            self._log(f"{schedule.name}: submitted {submission_id}")
        elif status in ENDED and not self._is_lease_held(schedule):
            state = history.STOPPED if status == STOPPED else FAILED
            started = (action.expected or ScheduledRun(action.scheduled_time)).begin_attempt(now)
            ended = started.end_attempt(state, now, f"job {submission_id} ended before it started")
            self._record(schedule, runs, action.expected, ended)

    def _record(
        self, schedule: StoredSchedule, runs: History, expected: ScheduledRun | None, record: ScheduledRun
    ) -> None:
        if runs.replace(expected, record):
            self._log(f"{schedule.name}: {record.scheduled_time} {record.state}: {record.reason}")
            if record.state == MISSED:
                notify_missed(schedule.recipe, schedule.name, record.scheduled_time)

    def _submit(self, schedule: StoredSchedule, action: DueAction, submission_id: str) -> None:
        home = self.store.get_folder(schedule.name).uri
        command = ["python", "-m", "jobs", "run-scheduled", "--runs", home]
        command += ["--scheduled-time", action.scheduled_time, "--ray-address", "auto"]
        metadata = {"schedule": schedule.name, "scheduled_time": action.scheduled_time, "attempt": str(action.attempt)}
        self.client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=submission_id,
            runtime_env=self.runtime_env,
            metadata=metadata,
        )

    @cached_property
    def runtime_env(self) -> Mapping[str, object]:
        """The jobs' runtime environment: the scheduler's own; else the checkout or, without git, the image's code."""
        if submitted := get_submitted_environment():
            return {name: submitted[name] for name in ("working_dir", "env_vars") if name in submitted}
        variables = {"env_vars": select_environment(os.environ, {})}
        if not (ROOT / ".git").exists():
            return variables
        pack(Path(self._package.name))
        return {"working_dir": self._package.name, **variables}

    def _find_job_outcome(self, schedule: StoredSchedule, run: ScheduledRun) -> JobOutcome | None:
        """Return how a run's job ended; a run whose lease is held is alive, whichever cluster it is on."""
        submission_id = build_submission_id(schedule.name, run.scheduled_time, len(run.attempts))
        status = self._get_job_status(submission_id)
        if (status and status not in ENDED) or self._is_lease_held(schedule):
            return None
        if status == STOPPED:
            return JobOutcome(history.STOPPED, f"job {submission_id} was stopped")
        return JobOutcome(FAILED, history.DIED)

    def _is_lease_held(self, schedule: StoredSchedule) -> bool:
        home = self.store.get_folder(schedule.name)
        return self._observers.setdefault(schedule.name, LeaseObserver(home)).is_held()

    def _get_job_status(self, submission_id: str) -> str | None:
        return next((job.status for job in self.client.list_jobs() if job.submission_id == submission_id), None)


def build_submission_id(name: str, scheduled_time: str, attempt: int) -> str:
    """Return the submission id of one attempt of a scheduled run."""
    return f"scheduled-{name}-{scheduled_time}-{attempt}"


def serve(scheduler: Scheduler, max_polls: int | None = None, poll_seconds: float = POLL_SECONDS) -> None:
    """Poll until the process is stopped, or `max_polls` times."""
    while max_polls is None or max_polls > 0:
        scheduler.poll(datetime.now(UTC))
        max_polls = None if max_polls is None else max_polls - 1
        if max_polls != 0:
            time.sleep(poll_seconds)
