"""One time that a schedule is due at: done once, by one process at a time, whoever starts it and how often.

Ray's scheduler job, KubeRay's RayCronJob (which starts all that was missed at once) and any cron may start it: the
lease and the history in the schedule's folder say whether there is anything to do.
"""

import json
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import cron
from pipeline.errors import TransientError, UserError
from pipeline.interrupts import at_once, interrupt_at_once
from pipeline.main_job import run_pipeline
from pipeline.recipe import Recipe
from pipeline.redaction import redact
from pipeline.registry import versions
from pipeline.schedules import history
from pipeline.schedules.history import DONE, FAILED, FINAL, REFUSED, RUNNING, SKIPPED, History, Tick
from pipeline.schedules.lease import SECONDS, BusyError, Lease
from pipeline.storage import Folder, first_line

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

    What was begun before and may be tried again comes first, and what is due now is left out then. What the job raises
    is written down and raised again.
    """
    past = History(home)
    due = tick or cron.stamp(cron.latest(recipe.schedule.cron, recipe.schedule.timezone, clock()))
    name = tick or _begun_before(past, due, recipe, clock()) or due
    if why := _nothing_to_do(past, name, recipe, clock(), asked=tick is not None):
        return f"{name}: {why}"
    _heed_interrupts()
    try:
        with Lease(home, f"tick {name}", lease_seconds, on_lost=interrupt_at_once) as lease:
            _write_down_deaths(past, name, recipe, clock())
            if why := _nothing_to_do(past, name, recipe, clock(), asked=tick is not None):
                return f"{name}: {why}"
            if name != due:
                _leave_out(past, due, f"tick {name} goes on")
            own = job or (lambda recipe, run: run_pipeline(recipe, run, tracking_uri, address, say=print))
            return _attempt(recipe, past, name, tracking_uri, clock, own, lease)
    except BusyError as busy:
        if str(busy) == f"tick {due}":
            return f"{due}: runs already"
        _leave_out(past, due, f"{busy} still ran")
        return f"{due}: left out, as {busy} still ran"


def _begun_before(past: History, due: str, recipe: Recipe, now: datetime) -> str | None:
    """The tick before `due` that is not over yet."""
    last = past.newest_begun(now)
    return last.tick if last and last.tick < due and last.left(recipe.schedule.retries) else None


def _nothing_to_do(past: History, name: str, recipe: Recipe, now: datetime, *, asked: bool) -> str:
    """Why a tick is not to be begun; empty if it is."""
    record, newest = past.read(name), past.newest_begun(now)
    if record and record.state == REFUSED:
        raise UserError(f"{name} was refused: {record.why}; allowed: a new time, with the mistake mended")
    if record and record.state in FINAL:
        return f"is {record.state} already" + (f" ({record.why})" if record.why else "")
    if record and record.state == FAILED and not record.left(recipe.schedule.retries):
        return f"failed {len(record.attempts)} times: {record.why}"
    if newest and newest.tick > name and not asked:
        return f"is over: {newest.tick} was begun after it"
    late = now - cron.of_stamp(name)
    if record is None and not asked and late > timedelta(hours=recipe.schedule.max_lateness_hours):
        hours = recipe.schedule.max_lateness_hours
        return f"is {late.total_seconds() / 3600:.1f} hours late; schedule.max_lateness_hours is {hours:g}"
    return ""


def _heed_interrupts() -> None:
    """A shell's background processes ignore them; here they end a job whose lease is lost."""
    at_once.clear()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _write_down_deaths(past: History, name: str, recipe: Recipe, now: datetime) -> None:
    """With the lease nobody else runs: what is said to has died."""
    for tick in filter(None, (past.newest_begun(now), past.read(name))):
        again = tick.tick == name and tick.left(recipe.schedule.retries)
        if tick.state == RUNNING and tick.attempts and not again:
            past.write(tick.ended(FAILED, now, history.DIED))


def _leave_out(past: History, name: str, why: str) -> None:
    if past.read(name) is None:
        past.write(Tick(name, SKIPPED, why))


def _attempt(
    recipe: Recipe,
    past: History,
    name: str,
    tracking_uri: str,
    clock: Callable[[], datetime],
    job: Job,
    lease: Lease,
) -> str:
    """Every end of the job but a kill is written down; with the lease lost the record is another's."""
    record = past.write((past.read(name) or Tick(name)).begun(clock()))
    try:
        source = record.started_from or _started_from(recipe, past.home, tracking_uri)
        record = past.write(replace(record, started_from=source))
        outcome = job(_with_start(recipe, past.home, source), past.home / "runs" / name)
    except BaseException as error:
        mistake = isinstance(error, UserError) and not isinstance(error, TransientError)
        why = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        if not lease.lost:
            past.write(record.ended(REFUSED if mistake else FAILED, clock(), redact(why)))
        raise
    if not lease.lost:
        past.write(record.ended(DONE, clock(), outcome=outcome))
    return f"{name}: version {outcome['version']} of {outcome['model']}: {outcome['decision']}"


TEACHER = "teacher"
CHAMPION = re.compile(r"version (\d+), student ([0-9a-f]{12})")


def _started_from(recipe: Recipe, home: Folder, tracking_uri: str) -> str:
    """The champion, with its student put beside the runs; "teacher" where none is there or wanted.

    Written into the tick's record: a later attempt starts from the same weights, whoever is champion by then.
    """
    if recipe.schedule.warm_start == TEACHER:
        return TEACHER
    model = f"nasa-{recipe.name}"
    champion = versions.champion(tracking_uri, model)
    if champion is None:
        return TEACHER
    source = f"version {champion.version}, student {champion.student_sha256[:12]}"
    target = _champion(home, source)
    whole = f"{_key(source)}.json"  # written when the folder beside it is complete
    if not target.parent.has(whole):
        with tempfile.TemporaryDirectory() as scratch:
            found = versions.download(tracking_uri, model, Path(scratch) / "version", champion.version)
            target.upload(found["folder"] / "student")
        told = {"model": model, "version": champion.version, "student_sha256": champion.student_sha256}
        target.parent.write(whole, json.dumps(told).encode())
    return source


def _champion(home: Folder, source: str) -> Folder:
    return home / "champions" / _key(source)


def _key(source: str) -> str:
    found = CHAMPION.fullmatch(source)
    if found is None:
        raise UserError(f"{source!r} is no start; allowed: {TEACHER!r}, or a version and its student")
    return "-".join(found.groups())


def _with_start(recipe: Recipe, home: Folder, source: str) -> Recipe:
    if source == TEACHER:
        return recipe
    student = recipe.student.model_copy(update={"init": _champion(home, source).uri})
    return recipe.model_copy(update={"student": student})
