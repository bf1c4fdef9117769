"""Schedules as files: `NAME.json` in a folder, local or on S3; their runs and history are in `NAME/` beside it."""

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as record

from pipeline import cron
from pipeline.errors import UserError, invalid
from pipeline.recipe import Recipe
from pipeline.redaction import contains_secret, redact
from pipeline.schedules.history import History, from_iso, parse_scheduled_time, to_iso
from pipeline.storage import Folder
from pipeline.strict_model import STRICT

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@record(frozen=True, config=STRICT)
class StoredSchedule:
    """A schedule. Times are in ISO format, UTC; `requested_at` is a time to run regardless of cron, or empty."""

    name: str
    recipe: Recipe
    tracking_uri: str
    added_at: str
    paused: bool = False
    requested_at: str = ""


_SCHEDULE = TypeAdapter(StoredSchedule)


@dataclass(frozen=True)
class ScheduleStore:
    """The schedules in one folder."""

    folder: Folder

    def get_folder(self, name: str) -> Folder:
        """Return the folder of a schedule's history, runs and lease."""
        return self.folder / check_name(name)

    def add(self, name: str, recipe: Recipe, tracking_uri: str, now: datetime | None = None) -> StoredSchedule:
        """Add a schedule.

        Raises:
            UserError: if there is one of this name, it is never due, or it would store a secret.
        """
        if self.folder.exists(f"{check_name(name)}.json"):
            raise invalid("name", name, "a new name", f"Run `schedule remove {name}` first, or choose another name.")
        if not recipe.schedule.cron:
            raise invalid("schedule.cron", "", "five fields", "Pass --cron, such as '0 3 * * SUN'.")
        if contains_secret(tracking_uri):  # a recipe is checked when it is loaded
            raise UserError(
                f"schedule: the secret in {redact(tracking_uri)!r} would be stored. Set it in the nodes' environment."
            )
        return self._write(StoredSchedule(name, recipe, tracking_uri, to_iso(now or datetime.now(UTC))))

    def read(self, name: str) -> StoredSchedule:
        """Return a schedule.

        Raises:
            UserError: there is no such schedule, or its file is corrupt.
        """
        file = f"{check_name(name)}.json"
        if not self.folder.exists(file):
            raise invalid("name", name, f"a schedule: {', '.join(self.list_names()) or 'there is none yet'}")
        try:
            schedule = _SCHEDULE.validate_json(self.folder.read(file))
            for when in (schedule.added_at, schedule.requested_at or schedule.added_at):
                from_iso(when)
            if schedule.name != name:
                raise ValueError("another schedule")
        except (ValidationError, ValueError):
            raise UserError(f"{self.folder.uri}/{file}: got invalid content; expected a schedule.") from None
        return schedule

    def set_paused(self, name: str, paused: bool) -> StoredSchedule:
        """Pause or resume a schedule; runs missed while it was paused are not caught up."""
        schedule = self.read(name)
        resumed = schedule.paused and not paused
        added_at = to_iso(datetime.now(UTC)) if resumed else schedule.added_at
        return self._write(replace(schedule, paused=paused, added_at=added_at))

    def request_run(self, name: str, when: datetime) -> StoredSchedule:
        """Request a run at `when`, whether the schedule is paused or not."""
        return self._write(replace(self.read(name), requested_at=to_iso(when)))

    def request_run_now(self, name: str, now: datetime | None = None) -> str:
        """Request a run; return its scheduled time: this minute, or the next one without a record."""
        when, history = now or datetime.now(UTC), History(self.get_folder(name))
        newest = history.find_newest_started(when + timedelta(days=1))  # a cluster's clock may be ahead of this one
        if newest:
            when = max(when, parse_scheduled_time(newest) + timedelta(minutes=1))
        while history.read(cron.format_stamp(when)):
            when += timedelta(minutes=1)
        self.request_run(name, when)
        return cron.format_stamp(when)

    def remove(self, name: str) -> None:
        """Remove a schedule; its history and runs stay."""
        self.read(name)
        self.folder.remove(f"{name}.json")

    def list_names(self) -> list[str]:
        """Return the names of all schedules, sorted."""
        return [name.removesuffix(".json") for name in self.folder.list_files() if name.endswith(".json")]

    def _write(self, schedule: StoredSchedule) -> StoredSchedule:
        self.folder.write_json(f"{schedule.name}.json", {**asdict(schedule), "recipe": schedule.recipe.to_dict()})
        return schedule


def check_name(name: str) -> str:
    """Return the name of a schedule.

    Raises:
        UserError: the name is not allowed.
    """
    if not NAME.fullmatch(name):
        raise invalid("name", name, "letters, digits, - and _, at most 63, starting with a letter or digit")
    return name
