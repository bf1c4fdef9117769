"""One run of a schedule: it happens once per scheduled time, in one process, however often it is started.

Ray's scheduler job, KubeRay's RayCronJob (which starts everything that was missed at once) and cron may start it: the
lease and the history in the schedule's folder decide whether there is anything to do.
"""

import logging
import re
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline import cron
from pipeline.errors import TransientError, UserError, get_first_line
from pipeline.immediate_stop import interrupt_without_checkpoint, stop_immediately
from pipeline.notifications import report_failure
from pipeline.recipe import Recipe
from pipeline.redaction import redact
from pipeline.registry import version_download, version_management
from pipeline.registry.registered_version import RegisteredVersion
from pipeline.run_pipeline import run_pipeline
from pipeline.schedules import history
from pipeline.schedules.history import DONE, FAILED, FINAL, INVALID_CONFIG, RUNNING, SKIPPED, History, ScheduledRun
from pipeline.schedules.lease import TTL_SECONDS, BusyError, Lease
from pipeline.storage import Folder

Job = Callable[[Recipe, Folder], RegisteredVersion]
TEACHER = "teacher"
logger = logging.getLogger(__name__)
CHAMPION = re.compile(r"version (\d+), student ([0-9a-f]{12})")


def run_scheduled(
    recipe: Recipe,
    home: Folder,
    tracking_uri: str,
    ray_address: str | None = None,
    *,
    scheduled_time: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    job: Job | None = None,
    lease_ttl: float = TTL_SECONDS,
) -> str:
    """Run what is due now, or `scheduled_time`, in `home/runs/<time>`; return what was done, or why nothing was.

    An earlier run that may be retried comes first, and what is due now is skipped then. An exception of the job is
    recorded and raised again.
    """
    runs = History(home)
    latest = scheduled_time or cron.format_stamp(
        cron.find_latest_time(recipe.schedule.cron, recipe.schedule.timezone, clock())
    )
    time = scheduled_time or _find_unfinished_before(runs, latest, recipe, clock()) or latest
    requested = scheduled_time is not None
    if reason := _find_reason_to_skip(runs, time, recipe, clock(), requested=requested):
        return f"{time}: {reason}"
    _accept_interrupts()
    try:
        with Lease(home, _describe_holder(time), lease_ttl, on_lost=interrupt_without_checkpoint) as lease:
            _record_deaths(runs, time, recipe, clock())
            if reason := _find_reason_to_skip(runs, time, recipe, clock(), requested=requested):
                return f"{time}: {reason}"
            if time != latest:
                _record_skipped(runs, latest, f"{_describe_holder(time)} is being retried")
            run_job = job or (lambda recipe, folder: run_pipeline(recipe, folder, tracking_uri, ray_address, log=print))
            return _run_attempt(recipe, runs, time, tracking_uri, clock, run_job, lease)
    except BusyError as busy:
        if str(busy) == _describe_holder(latest):
            return f"{latest}: is already running"
        _record_skipped(runs, latest, f"{busy} was still running")
        return f"{latest}: skipped, because {busy} was still running"


def _describe_holder(time: str) -> str:
    return f"scheduled run {time}"


def _find_unfinished_before(runs: History, latest: str, recipe: Recipe, now: datetime) -> str | None:
    """Return the scheduled time before `latest` that is unfinished, or None."""
    last = runs.find_newest_started(now)
    unfinished = last and last.scheduled_time < latest and last.can_continue(recipe.schedule.retries)
    return last.scheduled_time if last and unfinished else None


def _find_reason_to_skip(runs: History, time: str, recipe: Recipe, now: datetime, *, requested: bool) -> str:
    """Return why a scheduled time is not run, or an empty string if it is."""
    record, newest = runs.read(time), runs.find_newest_started(now)
    if record and record.state == INVALID_CONFIG:
        raise UserError(
            f"Scheduled run {time} was rejected: {record.reason}. Fix the recipe and wait for the next run."
        )
    if record and record.state in FINAL:
        return f"is already {record.state}" + (f" ({record.reason})" if record.reason else "")
    if record and record.state == FAILED and not record.can_continue(recipe.schedule.retries):
        return f"failed {len(record.attempts)} times: {record.reason}"
    if newest and newest.scheduled_time > time and not requested:
        return f"is superseded: {newest.scheduled_time} was started after it"
    late = now - cron.parse_stamp(time)
    hours = recipe.schedule.max_lateness_hours
    if record is None and not requested and late > timedelta(hours=hours):
        return f"is {late.total_seconds() / 3600:.1f} hours late; schedule.max_lateness_hours is {hours:g}"
    return ""


def _accept_interrupts() -> None:
    """Restore SIGINT, which background processes of a shell ignore: it ends a job whose lease is lost."""
    stop_immediately.clear()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _record_deaths(runs: History, time: str, recipe: Recipe, now: datetime) -> None:
    """Mark running runs as failed: this process holds the lease, so they have died."""
    for run in filter(None, (runs.find_newest_started(now), runs.read(time))):
        retried = run.scheduled_time == time and run.can_continue(recipe.schedule.retries)
        if run.state == RUNNING and run.attempts and not retried:
            runs.write(run.end_attempt(FAILED, now, history.DIED))


def _record_skipped(runs: History, time: str, reason: str) -> None:
    if runs.read(time) is None:
        runs.write(ScheduledRun(time, SKIPPED, reason))


def _run_attempt(
    recipe: Recipe,
    runs: History,
    time: str,
    tracking_uri: str,
    clock: Callable[[], datetime],
    job: Job,
    lease: Lease,
) -> str:
    """Run the job and record how it ended, unless the lease was lost: then another process writes the record."""
    record = runs.write((runs.read(time) or ScheduledRun(time)).begin_attempt(clock()))
    try:
        with report_failure(recipe, tracking_uri):
            started_from = record.started_from or _copy_champion(recipe, runs.home, tracking_uri)
            record = runs.write(replace(record, started_from=started_from))
            outcome = job(_set_initial_student(recipe, runs.home, started_from), runs.home / "runs" / time)
    except BaseException as error:
        invalid_config = isinstance(error, UserError) and not isinstance(error, TransientError)
        reason = (
            get_first_line(error)
            if isinstance(error, UserError)
            else f"{type(error).__name__}: {get_first_line(error)}"
        )
        if not lease.lost:
            runs.write(record.end_attempt(INVALID_CONFIG if invalid_config else FAILED, clock(), redact(reason)))
        raise
    if not lease.lost:
        runs.write(record.end_attempt(DONE, clock(), outcome=outcome))
        _remove_old_runs(recipe, runs)
    return f"{time}: {outcome}"


def _remove_old_runs(recipe: Recipe, runs: History) -> None:
    """Remove the folders of registered runs beyond the newest that the recipe keeps."""
    kept = recipe.retention.scheduled_runs
    if not kept:
        return
    try:
        registered = [run.scheduled_time for run in runs.list_runs() if run.state == DONE]
        for time in registered[:-kept]:
            (runs.home / "runs" / time).delete()
    except UserError as error:  # a folder that is away, a damaged record: the run itself is done
        logger.warning("retention.scheduled_runs: nothing more was removed: %s", error)


def _copy_champion(recipe: Recipe, home: Folder, tracking_uri: str) -> str:
    """Copy the champion's student beside the runs and return its version; "teacher" if there is none or none is wanted.

    The record keeps it, so that a retry starts from the same weights, whichever version is champion by then.
    """
    if recipe.schedule.warm_start == TEACHER:
        return TEACHER
    model = f"nasa-{recipe.name}"
    champion = version_management.find_champion(tracking_uri, model)
    if champion is None:
        return TEACHER
    started_from = f"version {champion.version}, student {champion.student_sha256[:12]}"
    target = _get_champion_folder(home, started_from)
    complete = f"{_format_champion_key(started_from)}.json"  # written after the folder
    if not target.parent.exists(complete):
        with tempfile.TemporaryDirectory() as scratch:
            _, folder = version_download.download(tracking_uri, model, Path(scratch) / "version", champion.version)
            target.upload(folder / "student")
        record = {"model": model, "version": champion.version, "student_sha256": champion.student_sha256}
        target.parent.write_json(complete, record)
    return started_from


def _get_champion_folder(home: Folder, started_from: str) -> Folder:
    return home / "champions" / _format_champion_key(started_from)


def _format_champion_key(started_from: str) -> str:
    match = CHAMPION.fullmatch(started_from)
    if match is None:
        raise UserError(f"started_from: got {started_from!r}; expected {TEACHER!r}, or a version and its student.")
    return "-".join(match.groups())


def _set_initial_student(recipe: Recipe, home: Folder, started_from: str) -> Recipe:
    if started_from == TEACHER:
        return recipe
    student = recipe.student.model_copy(update={"init": _get_champion_folder(home, started_from).uri})
    return recipe.model_copy(update={"student": student})
