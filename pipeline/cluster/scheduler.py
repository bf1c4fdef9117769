"""The scheduler: a job of its own that submits what is due, and holds nothing that its folder does not.

It asks every few seconds what is due at all, by the clock and the history; there is no timer to miss and nothing to
catch up with but the latest time. A second one on the same folder does no harm: the jobs' ids are the same.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import ROOT
from pipeline.cluster.follow import ENDED, STOPPED
from pipeline.cluster.package import pack
from pipeline.cluster.submit import settings
from pipeline.errors import UserError
from pipeline.redaction import redact
from pipeline.schedules import history
from pipeline.schedules.due import Due, Fate, due
from pipeline.schedules.history import FAILED, History, Tick
from pipeline.schedules.lease import Watch
from pipeline.schedules.store import Schedule, Schedules
from pipeline.session import submitted_environment
from pipeline.storage import first_line

POLL_SECONDS = 5.0


class Scheduler:
    """Over one store of schedules and one cluster."""

    def __init__(self, schedules: Schedules, client: Any, say: Callable[[str], None] = print) -> None:
        self.schedules, self.client = schedules, client
        self.say: Callable[[str], None] = lambda line: say(redact(line))
        self.told: dict[str, str] = {}
        self.watches: dict[str, Watch] = {}
        self._packed = TemporaryDirectory()  # as long as the scheduler lives

    def look(self, now: datetime) -> None:
        """Once over all schedules; what is wrong with one is said, once, and leaves the others alone."""
        names: list[str] = []
        with self._telling(self.schedules.store.uri):
            names = self.schedules.names()
        for name in names:
            with self._telling(name):
                self._one(self.schedules.read(name), now)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Of a failure, once, until it is another or over."""
        try:
            yield
            self.told.pop(what, None)
        except Exception as error:  # whatever one schedule ran into, the others go on
            line = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
            if self.told.get(what) != line:
                self.say(f"{what}: {line}")
            self.told[what] = line

    def _one(self, schedule: Schedule, now: datetime) -> None:
        past = History(self.schedules.home(schedule.name))
        found = due(schedule, past, now, lambda tick: self._fate(schedule, tick))
        if found is None:
            return
        if found.record:
            self._write_down(schedule, past, found.seen, found.record)
            return
        submission_id = job_id(schedule.name, found.tick, found.attempt)
        status = self._status(submission_id)
        if status is None:
            self._submit(schedule, found, submission_id)
            self.say(f"{schedule.name}: submitted {submission_id}")
        elif status in ENDED and not self._is_held(schedule):
            state = history.STOPPED if status == STOPPED else FAILED
            begun = (found.seen or Tick(found.tick)).begun(now)
            ended = begun.ended(state, now, f"job {submission_id} ended before it began")
            self._write_down(schedule, past, found.seen, ended)

    def _write_down(self, schedule: Schedule, past: History, seen: Tick | None, record: Tick) -> None:
        if past.replace(seen, record):
            self.say(f"{schedule.name}: {record.tick} {record.state}: {record.why}")

    def _submit(self, schedule: Schedule, found: Due, submission_id: str) -> None:
        home = self.schedules.home(schedule.name).uri
        command = ["python", "-m", "jobs", "tick", "--runs", home, "--tick", found.tick, "--address", "auto"]
        self.client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=submission_id,
            runtime_env=self.environment,
            metadata={"schedule": schedule.name, "tick": found.tick, "attempt": str(found.attempt)},
        )

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What the jobs run with: as this one was submitted; else the checkout or, without git, the image's code."""
        if own := submitted_environment():
            return {name: own[name] for name in ("working_dir", "env_vars") if name in own}
        variables = {"env_vars": settings(os.environ, {})}
        if not (ROOT / ".git").exists():
            return variables
        pack(Path(self._packed.name))
        return {"working_dir": self._packed.name, **variables}

    def _fate(self, schedule: Schedule, tick: Tick) -> Fate | None:
        """Its job may be another cluster's, or another launcher's: whose lease lives, lives."""
        submission_id = job_id(schedule.name, tick.tick, len(tick.attempts))
        status = self._status(submission_id)
        if (status and status not in ENDED) or self._is_held(schedule):
            return None
        return (history.STOPPED, f"job {submission_id} was stopped") if status == STOPPED else (FAILED, history.DIED)

    def _is_held(self, schedule: Schedule) -> bool:
        home = self.schedules.home(schedule.name)
        return self.watches.setdefault(schedule.name, Watch(home)).is_held()

    def _status(self, submission_id: str) -> str | None:
        return next((job.status for job in self.client.list_jobs() if job.submission_id == submission_id), None)


def job_id(name: str, tick: str, attempt: int) -> str:
    return f"tick-{name}-{tick}-{attempt}"


def serve(scheduler: Scheduler, rounds: int | None = None, poll_seconds: float = POLL_SECONDS) -> None:
    """Until it is ended, or so many rounds."""
    while rounds is None or rounds > 0:
        scheduler.look(datetime.now(UTC))
        rounds = None if rounds is None else rounds - 1
        if rounds != 0:
            time.sleep(poll_seconds)
