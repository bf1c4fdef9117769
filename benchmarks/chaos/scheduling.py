"""A schedule whose scheduler is killed, or whose clock jumps: what was due is done once."""

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.chaos.kills import killed_again_and_again
from benchmarks.chaos.nodes import kill
from benchmarks.chaos.world import Run, World, wait_for


def scheduler(world: World) -> list[str]:
    """The scheduler is killed, and started again: what was due is submitted once, and done once."""
    run, notes = world.new_run(), []
    store = run.folder / "schedules"
    world.finish(_add(run, "often", "0 0 1 1 *"))
    world.finish([sys.executable, "-m", "jobs", "schedule", "run-now", "often", "--store", str(store)])
    command = [sys.executable, "-m", "jobs", "scheduler", "--store", str(store), "--job-server", world.nodes.url]
    killed_again_and_again(world, command, 15, notes)
    last = world.begin(command)
    try:
        wait_for(lambda: _over(store / "often/history"), "a tick")
    finally:
        kill(last.pid)
        last.wait()
    _done_once(world, run, store / "often/history")
    return notes


def clock_jumps(world: World) -> list[str]:
    """The scheduler's clock, which is injected, jumps forwards, and back and forwards again: one run, one version."""
    from pipeline.cluster.job_client import connect
    from pipeline.schedules.schedule_store import ScheduleStore
    from pipeline.schedules.scheduler import Scheduler
    from pipeline.storage import Folder

    run, now = world.new_run(), datetime.now(UTC)
    store, ticks = run.folder / "schedules", run.folder / "schedules/often/history"
    world.finish(_add(run, "often", f"{(now.minute + 30) % 60} * * * *"))
    submitted: list[str] = []
    scheduler = Scheduler(ScheduleStore(Folder.from_uri(store)), connect(world.nodes.url), log=submitted.append)
    scheduler.poll(now)
    assert not submitted, submitted
    jumps = [ahead := timedelta(hours=world.random.uniform(2, 200))]
    scheduler.poll(now + ahead)
    wait_for(lambda: list(ticks.glob("*.json")), "a tick")
    while not _over(ticks):
        jumps.append(world.random.choice([ahead, timedelta(hours=world.random.uniform(-100, 0.4))]))
        scheduler.poll(now + jumps[-1])
        time.sleep(10)
    for jump in (-ahead, timedelta(0), ahead):
        scheduler.poll(now + jump)
    assert len(submitted) == 1, submitted
    _done_once(world, run, ticks)
    return [f"{jump.total_seconds() / 3600:+.0f} h" for jump in jumps]


def _add(run: Run, name: str, cron: str) -> list[str]:
    sets = [part for key, value in run.sets.items() for part in ("--set", f"{key}={value}")]
    own = ["--teacher", str(run.teacher), "--prompts", str(run.prompts), "--tracking-uri", run.tracking]
    where = ["--store", str(run.folder / "schedules")]
    return [sys.executable, "-m", "jobs", "schedule", "add", name, *where, "--cron", cron, *own, *sets]


def _over(ticks: Path) -> bool:
    states = [json.loads(one.read_text())["state"] for one in ticks.glob("*.json")]
    return any(state in ("done", "failed", "refused") for state in states)


def _done_once(world: World, run: Run, ticks: Path) -> None:
    (tick,) = ticks.glob("*.json")
    record = json.loads(tick.read_text())
    assert (record["state"], len(record["attempts"])) == ("done", 1), record
    distilled = ticks.parent / "runs" / tick.stem / "distilled/manifest.json"
    assert json.loads(distilled.read_text())["student_sha256"] == world.expected
    assert run.versions() == 1
