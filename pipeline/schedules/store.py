"""Schedules as files: `NAME.json` in a folder that lasts, local or on S3; what they lead to is in `NAME/` beside it."""

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pipeline.errors import UserError
from pipeline.recipe import Recipe, dump, parse
from pipeline.redaction import contains_secret, redact
from pipeline.schedules.history import iso, of_iso
from pipeline.storage import Folder

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Schedule:
    """`recipe_toml` is whole and resolved; `added` and `asked`, a time to run at once, are in ISO format."""

    name: str
    recipe_toml: str
    tracking_uri: str
    added: str
    paused: bool = False
    asked: str = ""

    @property
    def recipe(self) -> Recipe:
        return parse(self.recipe_toml)


@dataclass(frozen=True)
class Schedules:
    store: Folder

    def home(self, name: str) -> Folder:
        """Of its ticks, runs and lease."""
        return self.store / checked_name(name)

    def add(self, name: str, recipe: Recipe, tracking_uri: str, now: datetime | None = None) -> Schedule:
        """Raises a UserError where there is one of this name already, or it is never due."""
        if self.store.has(f"{checked_name(name)}.json"):
            raise UserError(
                f"name: {name!r} is there already; allowed: another name, or `schedule remove {name}` first"
            )
        if not recipe.schedule.cron:
            raise UserError("schedule.cron: is empty; allowed: --cron, such as '0 3 * * SUN'")
        told = dump(recipe)
        for text in (tracking_uri, *told.splitlines()):
            if contains_secret(text):
                raise UserError(
                    f"schedule: the secret in {redact(text)!r} would be stored; allowed: in the nodes' own environment"
                )
        return self._write(Schedule(name, told, tracking_uri, iso(now or datetime.now(UTC))))

    def read(self, name: str) -> Schedule:
        file = f"{checked_name(name)}.json"
        if not self.store.has(file):
            raise UserError(f"name: {name!r} is no schedule; allowed: {', '.join(self.names()) or 'none yet'}")
        try:
            found = Schedule(**json.loads(self.store.read(file)))
            for when in (found.added, found.asked or found.added):
                of_iso(when)
            texts = (found.recipe_toml, found.tracking_uri)
            if found.name != name or not all(isinstance(text, str) for text in texts):
                raise ValueError("no schedule")
        except (ValueError, TypeError):
            raise UserError(
                f"{self.store.uri}/{file}: is no schedule; allowed: one that `schedule add` wrote"
            ) from None
        return found

    def pause(self, name: str, paused: bool) -> Schedule:
        """What was missed while it was paused is not made up for."""
        found = self.read(name)
        added = found.added if paused == found.paused or paused else iso(datetime.now(UTC))
        return self._write(replace(found, paused=paused, added=added))

    def ask(self, name: str, when: datetime) -> Schedule:
        """To run at once, whether paused or not."""
        return self._write(replace(self.read(name), asked=iso(when)))

    def remove(self, name: str) -> None:
        """Its history and its runs stay."""
        self.read(name)
        self.store.remove(f"{name}.json")

    def names(self) -> list[str]:
        return [name.removesuffix(".json") for name in self.store.names() if name.endswith(".json")]

    def _write(self, schedule: Schedule) -> Schedule:
        self.store.write(f"{schedule.name}.json", (json.dumps(asdict(schedule), indent=2) + "\n").encode())
        return schedule


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(f"name: {name!r} is not allowed; allowed: letters, digits, - and _, up to 63")
    return name
