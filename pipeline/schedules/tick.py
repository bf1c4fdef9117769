"""One time that a schedule is due at: done once, by one process at a time, whoever starts it and how often.

Ray's scheduler job, KubeRay's RayCronJob (which starts all that was missed at once) and any cron may start it: the
lease and the history in the schedule's folder say whether there is anything to do.
"""

import _thread
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import cron
from pipeline.errors import StoreError, UserError
from pipeline.recipe import Recipe
from pipeline.registry import versions
from pipeline.schedules import history
from pipeline.schedules.history import DONE, FAILED, FINAL, REFUSED, SKIPPED, History, Tick
from pipeline.schedules.lease import SECONDS, BusyError, Lease
from pipeline.storage import Folder
from pipeline.whole import run_all

Job = Callable[[Recipe, Folder], dict[str, Any]]


def run_tick(
    recipe: Recipe,
    home: Folder,
    tracking_uri: str,
    address: str | None = None,
    *,
    tick: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    job: Job | None = None,
    lease_seconds: float = SECONDS,
) -> str:
    """Do what is due now, or `tick`, in `home/runs/<tick>`; returns a line that says what was done or why nothing was.

    What the job raises is written down and raised again.
    """
    past = History(home)
    name = tick or cron.stamp(cron.latest(recipe.schedule.cron, recipe.schedule.timezone, clock()))
    if why := _nothing_to_do(past, name, recipe, clock(), asked=tick is not None):
        return f"{name}: {why}"
    try:
        with Lease(home, f"tick {name}", lease_seconds, on_lost=_thread.interrupt_main):
            if why := _nothing_to_do(past, name, recipe, clock(), asked=tick is not None, held=True):
                return f"{name}: {why}"
            own = job or (lambda recipe, run: run_all(recipe, run, tracking_uri, address, say=print))
            return _attempt(recipe, home, past, name, tracking_uri, clock, own)
    except BusyError as busy:
        if str(busy) == f"tick {name}":
            return f"{name}: runs already"
        if past.read(name) is None:
            past.write(Tick(name, SKIPPED, f"{busy} still ran"))
        return f"{name}: left out, as {busy} still ran"


def _nothing_to_do(past: History, name: str, recipe: Recipe, now: datetime, *, asked: bool, held: bool = False) -> str:
    """Why a tick is not to be begun; empty if it is. With the lease `held` one that is said to run has died."""
    record, newest = past.read(name), past.newest()
    if record and record.state in FINAL:
        return f"is {record.state} already" + (f" ({record.why})" if record.why else "")
    over = record and (held or record.state == FAILED) and len(record.attempts) > recipe.schedule.retries
    if record and over:
        return f"failed {len(record.attempts)} times: {record.why or history.DIED}"
    if newest and newest.tick > name and not asked:
        return f"is over: {newest.tick} was begun after it"
    late = now - cron.of_stamp(name)
    if record is None and not asked and late > timedelta(hours=recipe.schedule.late_hours):
        return f"is {late.total_seconds() / 3600:.1f} hours late; schedule.late_hours is {recipe.schedule.late_hours:g}"
    return ""


def _attempt(
    recipe: Recipe,
    home: Folder,
    past: History,
    name: str,
    tracking_uri: str,
    clock: Callable[[], datetime],
    job: Job,
) -> str:
    """With the lease: every end of the job but a kill is written down."""
    record = past.read(name) or Tick(name)
    source = record.started_from or _started_from(recipe, home, tracking_uri)
    record = past.write(replace(record.begun(clock()), started_from=source))
    try:
        outcome = job(_with_start(recipe, home, source), home / "runs" / name)
    except BaseException as error:
        mistake = isinstance(error, UserError) and not isinstance(error, StoreError)
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".splitlines()[0]
        past.write(record.ended(REFUSED if mistake else FAILED, clock(), why))
        raise
    past.write(record.ended(DONE, clock(), outcome=outcome))
    return f"{name}: version {outcome['version']} of {outcome['model']}: {outcome['decision']}"


TEACHER = "teacher"


def _started_from(recipe: Recipe, home: Folder, tracking_uri: str) -> str:
    """The champion, as "version 3", with its student put beside the runs; "teacher" where none is there or wanted.

    Written into the tick's record: a later attempt starts from the same weights, whoever is champion by then.
    """
    if recipe.schedule.warm_start == TEACHER:
        return TEACHER
    number = versions.champion(tracking_uri, f"nasa-{recipe.name}")
    if number is None:
        return TEACHER
    target = _champion(home, number)
    if not target.has("model_index.json"):
        with tempfile.TemporaryDirectory() as scratch:
            found = versions.download(tracking_uri, f"nasa-{recipe.name}", Path(scratch) / "version", number)
            target.upload(found["folder"] / "student")
    return f"version {number}"


def _champion(home: Folder, number: str) -> Folder:
    return home / "champions" / number


def _with_start(recipe: Recipe, home: Folder, source: str) -> Recipe:
    if source == TEACHER:
        return recipe
    start = _champion(home, source.removeprefix("version ")).uri
    return replace(recipe, student=replace(recipe.student, init=start))
