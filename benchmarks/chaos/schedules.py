"""Scenarios in which the scheduler is killed or its clock jumps; the run that is due happens once."""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.chaos.harness import Harness, Run, wait_for
from benchmarks.chaos.kills import kill_repeatedly
from benchmarks.chaos.local_cluster import kill
from pipeline.schedules.history import DONE, FAILED, INVALID_CONFIG


def kill_scheduler(harness: Harness) -> list[str]:
    """Kill the scheduler and start it again; the run that is due is submitted once and done once."""
    run, notes = harness.new_run(), []
    store = run.folder / "schedules"
    harness.run_to_end(_add_schedule(run, "often", "0 0 1 1 *"))
    harness.run_to_end([sys.executable, "-m", "jobs", "schedule", "run-now", "often", "--store", str(store)])
    command = [sys.executable, "-m", "jobs", "scheduler", "--store", str(store), "--job-server", harness.cluster.url]
    kill_repeatedly(harness, command, 15, notes)
    last = harness.start(command)
    try:
        wait_for(lambda: _has_ended(store / "often/history"), "end of the scheduled run")
    finally:
        kill(last.pid)
        last.wait()
    _assert_done_once(harness, run, store / "often/history")
    return notes


def move_clock(harness: Harness) -> list[str]:
    """Move the scheduler's injected clock forwards, back and forwards again; there is one run and one version."""
    from pipeline.cluster.job_client import connect
    from pipeline.schedules.schedule_store import ScheduleStore
    from pipeline.schedules.scheduler import Scheduler
    from pipeline.storage import Folder

    run, now = harness.new_run(), datetime.now(UTC)
    store, history = run.folder / "schedules", run.folder / "schedules/often/history"
    harness.run_to_end(_add_schedule(run, "often", f"{(now.minute + 30) % 60} * * * *"))
    submitted: list[str] = []
    scheduler = Scheduler(ScheduleStore(Folder.from_uri(store)), connect(harness.cluster.url), log=submitted.append)
    scheduler.poll(now)
    assert not submitted, submitted
    jumps = [ahead := timedelta(hours=harness.random.uniform(2, 200))]
    scheduler.poll(now + ahead)
    wait_for(lambda: list(history.glob("*.json")), "a scheduled run")
    while not _has_ended(history):
        jumps.append(harness.random.choice([ahead, timedelta(hours=harness.random.uniform(-100, 0.4))]))
        scheduler.poll(now + jumps[-1])
        time.sleep(10)
    for jump in (-ahead, timedelta(0), ahead):
        scheduler.poll(now + jump)
    assert len(submitted) == 1, submitted
    _assert_done_once(harness, run, history)
    return [f"{jump.total_seconds() / 3600:+.0f} h" for jump in jumps]


def _add_schedule(run: Run, name: str, cron: str) -> list[str]:
    """Return the command that adds a schedule."""
    store = ["--store", str(run.folder / "schedules")]
    inputs = ["--teacher", str(run.teacher), "--prompts", str(run.prompts), "--tracking-uri", run.tracking_uri]
    overrides = [part for key, value in run.overrides.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "jobs", "schedule", "add", name, *store, "--cron", cron, *inputs, *overrides]


def _has_ended(history: Path) -> bool:
    states = [json.loads(file.read_text())["state"] for file in history.glob("*.json")]
    return any(state in (DONE, FAILED, INVALID_CONFIG) for state in states)


def _assert_done_once(harness: Harness, run: Run, history: Path) -> None:
    (file,) = history.glob("*.json")
    record = json.loads(file.read_text())
    assert (record["state"], len(record["attempts"])) == (DONE, 1), record
    distilled = history.parent / "runs" / file.stem / "distilled/manifest.json"
    assert json.loads(distilled.read_text())["student_sha256"] == harness.expected
    assert run.count_versions() == 1
