"""The history of a schedule: one record per scheduled time, `history/<time>.json` in the schedule's folder."""

from dataclasses import asdict, replace
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline import cron
from pipeline.errors import UserError
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.storage import Folder
from pipeline.strict_model import STRICT

RUNNING, DONE, FAILED, INVALID_CONFIG = "running", "done", "failed", "invalid_config"
STOPPED, SKIPPED, MISSED = "stopped", "skipped", "missed"
FINAL = (DONE, INVALID_CONFIG, STOPPED, SKIPPED, MISSED)  # a failed run may be retried
STATES = (RUNNING, FAILED, *FINAL)
DIED = "its process died"


@dataclass(frozen=True, config=STRICT)
class Attempt:
    """One attempt of a scheduled run. Times are in ISO format, UTC."""

    started: str
    ended: str = ""
    error: str = ""


@dataclass(frozen=True, config=STRICT)
class ScheduledRun:
    """The record of one scheduled time.

    Attributes:
        scheduled_time: UTC, such as 20261129T0300Z.
        state: one of this module's states.
        reason: what led to the state.
        attempts: the attempts, oldest first; none for a run that was skipped or missed.
        started_from: the weights that the student started from.
        outcome: what registration returned.
    """

    scheduled_time: str
    state: str = RUNNING
    reason: str = ""
    attempts: tuple[Attempt, ...] = ()
    started_from: str = ""
    outcome: RegisteredVersion | None = None

    def can_continue(self, retries: int) -> bool:
        """Tell whether the run is unfinished: it is running, or it failed and may be retried."""
        return self.state not in FINAL and len(self.attempts) <= retries

    def begin_attempt(self, now: datetime) -> "ScheduledRun":
        """Return the record with one more attempt; an earlier one without an end has died."""
        earlier = tuple(replace(attempt, error=DIED) if not attempt.ended else attempt for attempt in self.attempts)
        return replace(self, state=RUNNING, reason="", attempts=(*earlier, Attempt(to_iso(now))))

    def end_attempt(
        self, state: str, now: datetime, error: str = "", outcome: RegisteredVersion | None = None
    ) -> "ScheduledRun":
        """Return the record with its last attempt ended."""
        last = replace(self.attempts[-1], ended=to_iso(now), error=error)
        return replace(self, state=state, reason=error, attempts=(*self.attempts[:-1], last), outcome=outcome)


_RECORD = TypeAdapter(ScheduledRun)


@dataclass(frozen=True)
class History:
    """The records of one schedule; `home` is the schedule's folder."""

    home: Folder

    @property
    def folder(self) -> Folder:
        """The folder of the records."""
        return self.home / "history"

    def read(self, scheduled_time: str) -> ScheduledRun | None:
        """Return the record of a scheduled time, or None.

        Raises:
            UserError: if the file holds something else.
        """
        name = f"{scheduled_time}.json"
        if not self.folder.exists(name):
            return None
        try:
            run = _RECORD.validate_json(self.folder.read(name))
            _check(run)
            return run
        except (ValidationError, ValueError):
            raise UserError(f"{self.folder.uri}/{name}: got invalid content; expected the record of a run.") from None

    def write(self, run: ScheduledRun) -> ScheduledRun:
        """Write a record and return it."""
        self.folder.write_json(f"{run.scheduled_time}.json", asdict(run))
        return run

    def list_times(self) -> list[str]:
        """Return the recorded scheduled times, oldest first."""
        return [name.removesuffix(".json") for name in self.folder.list_files() if name.endswith(".json")]

    def find_newest(self) -> ScheduledRun | None:
        """Return the newest record, or None."""
        times = self.list_times()
        return self.read(times[-1]) if times else None

    def find_newest_started(self, now: datetime) -> ScheduledRun | None:
        """Return the newest run that was started; times later than `now` come from a wrong clock."""
        for scheduled_time in reversed(self.list_times()):
            if scheduled_time <= cron.format_stamp(now) and (run := self.read(scheduled_time)) and run.attempts:
                return run
        return None

    def replace(self, expected: ScheduledRun | None, run: ScheduledRun) -> bool:
        """Write a record if the stored one is still the `expected` one; tell whether it was."""
        if self.read(run.scheduled_time) != expected:
            return False
        self.write(run)
        return True

    def list_runs(self) -> list[ScheduledRun]:
        """Return all records, oldest first."""
        return [run for scheduled_time in self.list_times() if (run := self.read(scheduled_time))]


def _check(run: ScheduledRun) -> None:
    """Raise a ValueError if a record contradicts itself."""
    for attempt in run.attempts:
        for time in (attempt.started, attempt.ended or attempt.started):
            from_iso(time)
    started = bool(run.attempts) or run.state not in (RUNNING, FAILED)
    ended = run.state != FAILED or bool(run.attempts and run.attempts[-1].ended)
    if not (run.state in STATES and started and ended and cron.is_stamp(run.scheduled_time)):
        raise ValueError("not a record")


def require_over(run: Folder) -> None:
    """Reject the folder of a scheduled run that is running, or that failed and may be retried in the same folder.

    Raises:
        UserError: naming the run.
    """
    home, _, time = run.uri.rpartition("/runs/")
    if not cron.is_stamp(time) or home in ("", "s3:/"):  # a bucket may be named runs
        return
    record = History(Folder.from_uri(home)).read(time)
    if record and record.state not in FINAL:
        raise UserError(
            f"--run: scheduled run {record.scheduled_time} is {record.state} and may go on. Wait until it is over."
        )


def to_iso(when: datetime) -> str:
    """Return a time in ISO format, UTC, in seconds."""
    return when.astimezone(UTC).isoformat(timespec="seconds")


def from_iso(text: str) -> datetime:
    """Parse a time in ISO format.

    Raises:
        ValueError: if it is not a time, or has no time zone.
    """
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return when


def parse_scheduled_time(run: ScheduledRun) -> datetime:
    """Return a run's scheduled time."""
    return cron.parse_stamp(run.scheduled_time)
