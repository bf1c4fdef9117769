"""The scheduler: a job of its own that submits what is due, and holds nothing that its folder does not.

It asks every few seconds what is due at all, by the clock and the history; there is no timer to miss and nothing to
catch up with but the latest time. A second one on the same folder does no harm: the jobs' ids are the same.
"""

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline import ROOT, cron
from pipeline.cluster.follow import ENDED
from pipeline.cluster.package import pack
from pipeline.cluster.submit import settings
from pipeline.schedules.history import FAILED, FINAL, MISSED, RUNNING, History, Tick
from pipeline.schedules.store import Schedule, Schedules
from pipeline.storage import first_line

POLL_SECONDS = 5.0
OF_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in which Ray tells a job how it was submitted


@dataclass(frozen=True)
class Due:
    """A tick to submit, as its so manieth attempt; or, with 0, to write down as missed."""

    tick: str
    attempt: int


def due(schedule: Schedule, past: History, now: datetime, ended: Callable[[str, int], bool]) -> Due | None:
    """What is to be done now. `ended(tick, attempt)`: whether that attempt's job is over, or nobody knows of it."""
    options = schedule.recipe.schedule
    name = _wanted(schedule, now)
    if name is None:
        return None
    record, newest = past.read(name), past.newest()
    if record is None:
        if newest and newest.tick > name:  # the clock went back
            return None
        if not schedule.asked and now - cron.of_stamp(name) > timedelta(hours=options.late_hours):
            return Due(name, 0)
        return Due(name, 1)
    attempts = len(record.attempts)
    if record.state in FINAL or attempts > options.retries:
        return None
    if record.state == RUNNING:
        return Due(name, attempts + 1) if ended(name, attempts) else None
    waited = now - datetime.fromisoformat(record.attempts[-1].ended)
    return Due(name, attempts + 1) if waited >= timedelta(minutes=options.retry_minutes) else None


def _wanted(schedule: Schedule, now: datetime) -> str | None:
    """The tick to look at: the one asked for if it is newer than the latest by the clock."""
    options, added = schedule.recipe.schedule, datetime.fromisoformat(schedule.added)
    latest = cron.latest(options.cron, options.timezone, now)
    by_clock = cron.stamp(latest) if not schedule.paused and latest > added else None
    asked = cron.stamp(datetime.fromisoformat(schedule.asked)) if schedule.asked else None
    return max((each for each in (by_clock, asked) if each), default=None)


class Scheduler:
    """Over one store of schedules and one cluster."""

    def __init__(self, schedules: Schedules, client: Any, say: Callable[[str], None] = print) -> None:
        self.schedules, self.client, self.say = schedules, client, say
        self.told: dict[str, str] = {}
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
        except (OSError, RuntimeError, ValueError) as error:
            line = first_line(error)
            if self.told.get(what) != line:
                self.say(f"{what}: {line}")
            self.told[what] = line

    def _one(self, schedule: Schedule, now: datetime) -> None:
        past = History(self.schedules.home(schedule.name))
        found = due(schedule, past, now, lambda tick, attempt: self._ended(schedule, tick, attempt))
        if found is None:
            return
        if not found.attempt:
            past.write(
                Tick(found.tick, MISSED, f"nothing ran for {schedule.recipe.schedule.late_hours:g} hours after it")
            )
            self.say(f"{schedule.name}: {found.tick} was missed")
            return
        submission_id = job_id(schedule.name, found.tick, found.attempt)
        status = self._status(submission_id)
        if status is None:
            self._submit(schedule, found, submission_id)
            self.say(f"{schedule.name}: submitted {submission_id}")
        elif status in ENDED:
            record = past.read(found.tick) or Tick(found.tick)
            past.write(record.begun(now).ended(FAILED, now, f"job {submission_id} ended before it began"))

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
        if told := os.environ.get(OF_JOB):
            own = json.loads(told).get("runtime_env") or {}
            return {name: own[name] for name in ("working_dir", "env_vars") if name in own}
        variables = {"env_vars": settings(os.environ, {})}
        if not (ROOT / ".git").exists():
            return variables
        pack(Path(self._packed.name))
        return {"working_dir": self._packed.name, **variables}

    def _ended(self, schedule: Schedule, tick: str, attempt: int) -> bool:
        status = self._status(job_id(schedule.name, tick, attempt))
        return status is None or status in ENDED

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
