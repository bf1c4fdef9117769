"""One kind of harm each: it gets the world, does harm at random moments, and asserts how that must end.

What is returned is a note for each time that harm was done in the run.
"""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.chaos.faults import Faults
from benchmarks.chaos.nodes import Nodes, Process, await_port, free_ports
from benchmarks.chaos.world import Run, World, processes, wait_for

Scenario = Callable[[World], list[str]]


def worker(world: World) -> list[str]:
    """A train worker is killed; Ray Train starts the group again from the last checkpoint."""
    run, notes = world.new_run(), []
    driver = world.begin(world.distill(run))
    for victim in _fresh(world, driver, world.nodes, "RayTrainWorker"):
        when = world.moment(world.took / 2)
        if not _kill(victim):
            break
        notes.append(f"{when:.0f} s after it began")
    driver.ends_with(0)
    world.same(run)
    return notes


def driver(world: World) -> list[str]:
    """The driver is killed; the same command goes on."""
    run, notes = world.new_run(), []
    _killed_again_and_again(world, world.distill(run), world.took, notes)
    world.finish(world.distill(run))
    world.same(run)
    return notes


def node(world: World) -> list[str]:
    """The machine of both workers is lost, and a spare one takes over."""
    cluster, notes = world.cluster(cpus=0), []
    try:
        used = cluster.add(2)
        run = world.new_run()
        run.sets |= {"train.cpus_per_worker": 0.8}
        process = world.begin(run.command("distill", "--address", cluster.address))
        for _ in _fresh(world, process, cluster, "RayTrainWorker"):
            spare, when = cluster.add(2), world.moment(world.took / 2)
            if process.poll() is not None:
                break
            cluster.kill(used)
            used = spare
            notes.append(f"{when:.0f} s after its workers began")
        process.ends_with(0)
        world.same(run)
        return notes
    finally:
        cluster.kill()


def node_without_spare(world: World) -> list[str]:
    """One of two machines is lost, and training goes on to the end with one worker (elastic)."""
    cluster = world.cluster(cpus=0)
    try:
        lost, _ = cluster.add(1), cluster.add(1)
        run = world.new_run()
        run.sets |= {"train.cpus_per_worker": 0.8, "train.min_workers": 1}
        process = world.begin(run.command("distill", "--address", cluster.address))
        wait_for(lambda: run.checkpoints, "a checkpoint", process)
        when = world.moment(3)
        cluster.kill(lost)
        process.ends_with(0)
        state = json.loads(run.checkpoints[-1].read_text())
        assert (state["step"], state["workers"]) == (run.sets["train.steps"], 1), state
        return [f"{when:.1f} s after a checkpoint"]
    finally:
        cluster.kill()


def head(world: World) -> list[str]:
    """The whole cluster is lost; on a new one the same command goes on."""
    run, notes = world.new_run(), []
    for _ in range(world.times):
        process = world.begin(world.distill(run))
        when = world.moment()
        if process.poll() is not None:
            break
        world.nodes.kill()
        _kill(process.pid)
        process.wait()
        world.nodes = world.cluster()
        notes.append(f"{when:.0f} s after the start")
    world.finish(world.distill(run))
    world.same(run)
    return notes


def evaluator(world: World) -> list[str]:
    """An actor that evaluates is killed; the evaluation has every image, once."""
    run, notes = world.evaluated(), []
    command, expected = run.command("evaluate", "--address", world.nodes.address), _scores(run)
    for _ in range(world.times):
        (run.folder / "evaluation").rename(run.folder / f"evaluation-{time.monotonic_ns()}")
        process = world.begin(command)
        victim = next(_fresh(world, process, world.nodes, "Studio"), None)
        when = world.moment(3)
        if victim and _kill(victim):
            notes.append(f"{when:.1f} s after it began")
        if process.ends_with(0, 1) != 0:
            world.finish(command)
        assert _scores(run) == expected, "other images"
    return notes


def registry_client(world: World) -> list[str]:
    """`register` is killed, and called again: one version."""
    run, notes = world.evaluated(), []
    _killed_again_and_again(world, run.command("register"), 15, notes)
    world.finish(run.command("register"))
    world.finish(run.command("register"))
    assert _versions(run) == 1
    return notes


def scheduler(world: World) -> list[str]:
    """The scheduler is killed, and started again: what was due is submitted once, and done once."""
    run, notes = world.new_run(), []
    store = run.folder / "schedules"
    world.finish(_add(run, "often", "0 0 1 1 *"))
    world.finish([sys.executable, "-m", "jobs", "schedule", "run-now", "often", "--store", str(store)])
    command = [sys.executable, "-m", "jobs", "scheduler", "--store", str(store), "--address", world.nodes.url]
    _killed_again_and_again(world, command, 15, notes)
    last = world.begin(command)
    try:
        wait_for(lambda: _over(store / "often/ticks"), "a tick")
    finally:
        _kill(last.pid)
        last.wait()
    _done_once(world, run, store / "often/ticks")
    return notes


def clock_jumps(world: World) -> list[str]:
    """The scheduler's clock, which is injected, jumps forwards, and back and forwards again: one run, one version."""
    from pipeline.cluster.client import connect
    from pipeline.cluster.scheduler import Scheduler
    from pipeline.schedules.store import Schedules
    from pipeline.storage import Folder

    run, now = world.new_run(), datetime.now(UTC)
    store, ticks = run.folder / "schedules", run.folder / "schedules/often/ticks"
    world.finish(_add(run, "often", f"{(now.minute + 30) % 60} * * * *"))
    submitted: list[str] = []
    scheduler = Scheduler(Schedules(Folder.of(store)), connect(world.nodes.url), say=submitted.append)
    scheduler.look(now)
    assert not submitted, submitted
    jumps = [ahead := timedelta(hours=world.random.uniform(2, 200))]
    scheduler.look(now + ahead)
    wait_for(lambda: list(ticks.glob("*.json")), "a tick")
    while not _over(ticks):
        jumps.append(world.random.choice([ahead, timedelta(hours=world.random.uniform(-100, 0.4))]))
        scheduler.look(now + jumps[-1])
        time.sleep(10)
    for jump in (-ahead, timedelta(0), ahead):
        scheduler.look(now + jump)
    assert len(submitted) == 1, submitted
    _done_once(world, run, ticks)
    return [f"{jump.total_seconds() / 3600:+.0f} h" for jump in jumps]


def mlflow_down(world: World) -> list[str]:
    """The tracking server is gone for a minute while training goes on."""
    run, notes = world.new_run(), []
    (port,) = free_ports(1)
    run.tracking, store = f"http://127.0.0.1:{port}", f"sqlite:///{run.folder}/server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    command += ["--artifacts-destination", str(run.folder / "artifacts"), "--workers", "1"]
    server = world.begin(command)
    try:
        await_port(port)
        process = world.begin(world.distill(run))
        wait_for(lambda: (run.folder / "distilled/run.json").is_file(), "the run's record", process)
        when = world.moment(world.took / 2)
        ended = process.poll() is not None
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        time.sleep(60)
        server = world.begin(command)
        process.ends_with(0)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    world.same(run)
    return notes if ended else [f"{when:.0f} s after the run's record"]


def s3_unavailable(world: World) -> list[str]:
    """The store answers every request with 503 for half a minute at a time, while training goes on."""
    notes, (port,) = [], free_ports(1)
    store = world.begin([sys.executable, "-m", "moto.server", "-p", str(port)])
    faults = Faults(f"http://127.0.0.1:{port}", world.s3_port).start()
    try:
        await_port(port)
        _create_bucket("chaos")
        run = world.new_run(bucket="chaos")
        process = world.begin(world.distill(run))
        while len(notes) < world.times:
            when = world.moment()
            if process.poll() is not None:
                break
            before, faults.how, faults.fails = faults.requests, "503", lambda number, path: True
            time.sleep(30)
            faults.how = None
            notes.append(f"{when:.0f} s later, {faults.requests - before} requests refused")
            time.sleep(30)
        process.ends_with(0)
        world.same(run)
    finally:
        faults.stop()
        os.killpg(store.pid, signal.SIGKILL)
        store.wait()
    return notes


def _create_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def disk_full(world: World) -> list[str]:
    """The disk that the run writes to is full from some moment on; with room again the same command goes on."""
    run, notes = world.new_run(), []
    target = run.folder / "distilled"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(target)], check=True)
    try:
        for _ in range(world.times):
            process = world.begin(world.distill(run, "--set", "train.max_failures=0"))
            when = world.moment()
            if process.poll() is not None:
                break
            filler = _fill(target)
            code = process.ends_with(0, 1, 2)
            filler.unlink()
            notes.append(f"{when:.0f} s after the start, exit {code}")
            assert "Traceback" not in process.printed, process.printed[-3000:]
            assert code == 0 or "No space left on device" in process.printed, process.printed[-3000:]
            if code == 0:
                break
        world.finish(world.distill(run))
        world.same(run)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    return notes


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


def truncated_checkpoint(world: World) -> list[str]:
    """The driver is killed and the newest checkpoint loses half of a file; the one before it is taken."""
    run, notes = world.new_run(), []
    for _ in range(world.times):
        start = time.time()
        process = world.begin(world.distill(run))
        wait_for(lambda start=start, process=process: _two_since(run, start) or process.poll() is not None, "two more")
        if not _kill(process.pid):
            break
        process.wait()
        wait_for(lambda: not processes(world.nodes, "RayTrainWorker"), "the workers' end")
        files = sorted(path for path in run.checkpoints[-1].parent.rglob("*") if path.is_file())
        victim = world.random.choice([path for path in files if path.stat().st_size > 1])
        os.truncate(victim, victim.stat().st_size // 2)
        notes.append(f"{victim.parent.name}/{victim.name}")
    world.finish(world.distill(run))
    world.same(run)
    return notes


def _two_since(run: Run, start: float) -> bool:
    """Else, again and again, no whole one would be left of those that are kept."""
    with suppress(OSError):  # one that is removed meanwhile
        return sum(one.stat().st_mtime > start for one in run.checkpoints) >= 2
    return False


def changed_shard(world: World) -> list[str]:
    """A shard of prompts changes between the driver's death and the restart: one clear line, and no training on it."""
    run, notes = world.new_run(), []
    process = world.begin(world.distill(run))
    wait_for(lambda: run.checkpoints, "a checkpoint", process)
    _kill(process.pid)
    process.wait()
    (shard,) = (run.folder / "prompts").glob("shard-*.parquet")
    whole = shard.read_bytes()
    for _ in range(world.times):
        place = world.random.randrange(len(whole))
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        refused = world.begin(world.distill(run))
        refused.ends_with(2)
        assert "is not what was prepared" in refused.printed, refused.printed[-3000:]
        notes.append(f"byte {place}")
    shard.write_bytes(whole)
    world.finish(world.distill(run))
    world.same(run)
    return notes


def _killed_again_and_again(world: World, command: list[str], longest: float, notes: list[str]) -> None:
    """Until it lives longer than until its moment."""
    for _ in range(world.times):
        process = world.begin(command)
        when = world.moment(longest)
        if process.poll() is not None:
            process.ends_with(0)
            return
        _kill(process.pid)
        process.wait()
        notes.append(f"{when:.0f} s after its start")


def _fresh(world: World, driver: Process, nodes: Nodes, name: str) -> Iterator[int]:
    """A process of this name that was not there before, `world.times` times, for as long as the driver lives."""
    seen: set[int] = set()

    def fresh_or_over() -> bool:
        return bool(processes(nodes, name) - seen) or driver.poll() is not None

    for _ in range(world.times):
        wait_for(fresh_or_over, name)
        if driver.poll() is not None:
            return
        yield min(processes(nodes, name) - seen, default=0)
        seen.update(processes(nodes, name))


def _kill(pid: int) -> bool:
    """Whether there was something to kill."""
    if not pid:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _scores(run: Run) -> list[tuple[str, int]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(run.folder / "evaluation/scores.parquet").to_pylist()
    return sorted((str(row["system"]) + str(row["prompt"]), int(row["seed"])) for row in rows)


def _versions(run: Run) -> int:
    with sqlite3.connect(run.tracking.removeprefix("sqlite:///")) as store:
        return int(store.execute("select count(*) from model_versions").fetchone()[0])


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
    assert _versions(run) == 1


SCENARIOS: dict[str, tuple[Scenario, int]] = {  # and how often at least
    "worker": (worker, 20),
    "driver": (driver, 20),
    "node, with a spare": (node, 5),
    "node, without one": (node_without_spare, 5),
    "head": (head, 5),
    "evaluator": (evaluator, 5),
    "registry client": (registry_client, 5),
    "scheduler": (scheduler, 5),
    "clock jumps": (clock_jumps, 5),
    "MLflow down for a minute": (mlflow_down, 5),
    "S3 answers 503 for 30 s": (s3_unavailable, 5),
    "disk full": (disk_full, 5),
    "truncated checkpoint": (truncated_checkpoint, 5),
    "changed shard": (changed_shard, 5),
}


def harm(name: str, world: World) -> tuple[bool, list[str]]:
    """Whether all ended as it must, and a note for each time; of one that did not, what was found, in its last line."""
    try:
        return True, SCENARIOS[name][0](world)
    except (AssertionError, subprocess.TimeoutExpired, subprocess.CalledProcessError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return False, [(str(error).strip().splitlines() or [type(error).__name__])[-1]]
