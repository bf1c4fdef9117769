"""One disturbance each: it gets the world, does its harm at a random moment, and asserts how it must end.

What is returned is put into the table.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.chaos.faults import Faults
from benchmarks.chaos.nodes import free_ports
from benchmarks.chaos.world import Run, World, processes, wait_for

Scenario = Callable[[World], str]


def worker(world: World) -> str:
    """A train worker is killed; Ray Train starts the group again from the last checkpoint."""
    run = world.new_run()
    driver = world.begin(world.distill(run))
    found = wait_for(lambda: processes(world.nodes, "RayTrainWorker"), "a train worker", driver)
    when = world.moment(world.took / 2)
    victim = next(iter(processes(world.nodes, "RayTrainWorker") or found))
    _kill(victim.pid)
    assert driver.wait(timeout=600) == 0
    world.same(run)
    return f"{when:.1f} s after the first worker"


def driver(world: World) -> str:
    """The driver is killed; the same command goes on."""
    run = world.new_run()
    process = world.begin(world.distill(run))
    when = world.moment()
    killed = process.poll() is None
    _kill(process.pid)
    process.wait()
    world.finish(world.distill(run))
    world.same(run)
    return f"{when:.1f} s after the start" + ("" if killed else ", which had ended")


def node(world: World) -> str:
    """The machine of both workers is lost, and a spare one takes over."""
    return _lost_node(world, spare=True)


def node_without_spare(world: World) -> str:
    """One of two machines is lost, and training goes on to the end with one worker (elastic)."""
    return _lost_node(world, spare=False)


def _lost_node(world: World, spare: bool) -> str:
    cluster = world.cluster(cpus=0)
    try:
        lost = cluster.add(2 if spare else 1)
        run = world.new_run()
        run.sets |= {"train.cpus_per_worker": 0.8} | ({} if spare else {"train.min_workers": 1})
        if not spare:
            cluster.add(1)
        process = world.begin(run.command("distill", "--address", cluster.address))
        wait_for(lambda: run.checkpoints, "a checkpoint", process)
        if spare:
            cluster.add(2)
        when = world.moment(3)
        cluster.kill(lost)
        assert process.wait(timeout=600) == 0
        if spare:
            world.same(run)
        state = json.loads(run.checkpoints[-1].read_text())
        assert (state["step"], state["workers"]) == (run.sets["train.steps"], 2 if spare else 1)
        return f"{when:.1f} s after a checkpoint"
    finally:
        cluster.kill()


def head(world: World) -> str:
    """The whole cluster is lost; on a new one the same command goes on."""
    run = world.new_run()
    process = world.begin(world.distill(run))
    when = world.moment()
    world.nodes.kill()
    _kill(process.pid)
    process.wait()
    world.nodes = world.cluster()
    world.finish(world.distill(run))
    world.same(run)
    return f"{when:.1f} s after the start"


def evaluator(world: World) -> str:
    """An actor that evaluates is killed; the evaluation has every image, once."""
    run = _distilled(world)
    process = world.begin(run.command("evaluate", "--address", world.nodes.address))
    wait_for(lambda: processes(world.nodes, "Studio") or process.poll() is not None, "an evaluator")
    when = world.moment(3)
    for victim in processes(world.nodes, "Studio")[:1]:
        _kill(victim.pid)
    if process.wait(timeout=600) != 0:
        world.finish(run.command("evaluate", "--address", world.nodes.address))
    assert _scores(run) == _scores_of_reference(world, run)
    return f"{when:.1f} s after the first"


def registry_client(world: World) -> str:
    """`register` is killed, and called again: one version."""
    run = _distilled(world)
    world.finish(run.command("evaluate", "--address", world.nodes.address))
    process = world.begin(run.command("register"))
    when = world.moment(12)
    killed = process.poll() is None
    _kill(process.pid)
    process.wait()
    world.finish(run.command("register"))
    world.finish(run.command("register"))
    assert _versions(run) == 1
    return f"{when:.1f} s after its start" + ("" if killed else ", which had ended")


def scheduler(world: World) -> str:
    """The scheduler is killed, and started again: what was due is submitted once, and done once."""
    run = world.new_run()
    store = run.folder / "schedules"
    world.finish(_add(run, "often", "0 0 1 1 *"))
    world.finish([sys.executable, "-m", "jobs", "schedule", "run-now", "often", "--store", str(store)])
    command = [sys.executable, "-m", "jobs", "scheduler", "--store", str(store), "--address", world.nodes.url]
    process = world.begin(command)
    when = world.moment(12)
    _kill(process.pid)
    process.wait()
    again = world.begin(command)
    try:
        wait_for(lambda: _over(store / "often/ticks"), "a tick")
    finally:
        _kill(again.pid)
        again.wait()
    _done_once(world, run, store / "often/ticks")
    return f"{when:.1f} s after its start"


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


def mlflow_down(world: World) -> str:
    """The tracking server is gone for a minute while training goes on."""
    run = world.new_run()
    (port,) = free_ports(1)
    run.tracking, store = f"http://127.0.0.1:{port}", f"sqlite:///{run.folder}/server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    command += ["--artifacts-destination", str(run.folder / "artifacts"), "--workers", "1"]
    server = world.begin(command)
    try:
        _await_port(port)
        process = world.begin(world.distill(run))
        wait_for(lambda: (run.folder / "distilled/run.json").is_file(), "the run's record", process)
        when = world.moment(world.took / 3)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        time.sleep(60)
        server = world.begin(command)
        assert process.wait(timeout=600) == 0
    finally:
        os.killpg(server.pid, signal.SIGKILL)
    world.same(run)
    return f"{when:.1f} s after the run began"


def s3_unavailable(world: World) -> str:
    """The store answers every request with 503 for half a minute while training goes on."""
    (port,) = free_ports(1)
    store = world.begin([sys.executable, "-m", "moto.server", "-p", str(port)])
    faults = Faults(f"http://127.0.0.1:{port}", world.s3_port).start()
    try:
        _await_port(port)
        _create_bucket("chaos")
        run = world.new_run(bucket="chaos")
        process = world.begin(world.distill(run))
        when = world.moment()
        ended, before = process.poll() is not None, faults.requests
        faults.how, faults.fails = "503", lambda number, path: True
        time.sleep(30)
        faults.fails, met = lambda number, path: False, faults.requests - before
        assert process.wait(timeout=600) == 0
        world.same(run)
    finally:
        faults.stop()
        os.killpg(store.pid, signal.SIGKILL)
        store.wait()
    return f"{when:.1f} s after the start, {met} requests refused" + (", which had ended" if ended else "")


def _create_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def clock_jumps(world: World) -> str:
    """The scheduler's clock, which is injected, jumps forwards, back and forwards again: one run, one version."""
    from pipeline.cluster.client import connect
    from pipeline.cluster.scheduler import Scheduler
    from pipeline.schedules.store import Schedules
    from pipeline.storage import Folder

    run, now = world.new_run(), datetime.now(UTC)
    store = run.folder / "schedules"
    cron = f"{(now.minute + 30) % 60} * * * *"
    world.finish(_add(run, "often", cron))
    submitted: list[str] = []
    scheduler = Scheduler(Schedules(Folder.of(store)), connect(world.nodes.url), say=submitted.append)
    ahead = timedelta(hours=world.random.uniform(2, 200))
    scheduler.look(now)
    assert not submitted, submitted
    scheduler.look(now + ahead)
    ticks = store / "often/ticks"
    wait_for(lambda: list(ticks.glob("*.json")), "a tick")
    jumps = []
    while not _over(ticks):
        jumps.append(timedelta(hours=world.random.uniform(-100, 0)) if world.random.random() < 0.5 else ahead)
        scheduler.look(now + jumps[-1])
        time.sleep(2)
    for jump in (-ahead, timedelta(0), ahead):
        scheduler.look(now + jump)
    assert len(submitted) == 1, submitted
    _done_once(world, run, ticks)
    return f"{ahead.total_seconds() / 3600:.0f} h forwards, then {len(jumps)} jumps"


def disk_full(world: World) -> str:
    """The disk that checkpoints go to is full; with room again the same command goes on."""
    run = world.new_run()
    target = run.folder / "distilled"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(target)], check=True)
    try:
        filler = target / "filler"
        filler.write_bytes(b"0" * (20 * 2**20))
        process = world.begin(world.distill(run, "--set", "train.max_failures=0"))
        code = process.wait(timeout=600)
        assert code in (1, 2), f"exit {code}"
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=512m", str(target)], check=True)
        world.finish(world.distill(run))
        world.same(run)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    return "from the first checkpoint on"


def truncated_checkpoint(world: World) -> str:
    """The driver is killed and the newest checkpoint loses half of a file; the one before it is taken."""
    run = world.new_run()
    process = world.begin(world.distill(run))
    wait_for(lambda: len(run.checkpoints) >= 2, "a second checkpoint", process)
    _kill(process.pid)
    process.wait()
    wait_for(lambda: not processes(world.nodes, "RayTrainWorker"), "the workers' end")
    files = sorted(path for path in run.checkpoints[-1].parent.rglob("*") if path.is_file())
    victim = world.random.choice([path for path in files if path.stat().st_size > 1])
    os.truncate(victim, victim.stat().st_size // 2)
    world.finish(world.distill(run))
    world.same(run)
    return victim.name


def changed_shard(world: World) -> str:
    """A shard of prompts changes between the driver's death and the restart: one clear line, and no training on it."""
    run = world.new_run()
    process = world.begin(world.distill(run))
    wait_for(lambda: run.checkpoints, "a checkpoint", process)
    _kill(process.pid)
    process.wait()
    (shard,) = (run.folder / "prompts").glob("shard-*.parquet")
    whole = shard.read_bytes()
    place = world.random.randrange(len(whole))
    shard.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    log = run.folder / "refused.log"
    assert world.begin(world.distill(run), log).wait(timeout=600) == 2
    assert "is not what was prepared" in log.read_text() or shard.name in log.read_text()
    shard.write_bytes(whole)
    world.finish(world.distill(run))
    world.same(run)
    return f"byte {place}"


def _distilled(world: World) -> Run:
    run = world.new_run()
    world.finish(world.distill(run))
    return run


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _scores(run: Run) -> list[tuple[str, int]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(run.folder / "evaluation/scores.parquet").to_pylist()
    return sorted((str(row["system"]) + str(row["prompt"]), int(row["seed"])) for row in rows)


def _scores_of_reference(world: World, run: Run) -> list[tuple[str, int]]:
    """The same evaluation of another run's equal student, undisturbed."""
    other = _distilled(world)
    world.finish(other.command("evaluate", "--address", world.nodes.address))
    return _scores(other)


def _versions(run: Run) -> int:
    with sqlite3.connect(run.tracking.removeprefix("sqlite:///")) as store:
        return int(store.execute("select count(*) from model_versions").fetchone()[0])


def _await_port(port: int) -> None:
    import socket

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    wait_for(answers, "the tracking server", seconds=120)


SCENARIOS: dict[str, tuple[Scenario, int]] = {  # and how often at least
    "worker": (worker, 20),
    "driver": (driver, 20),
    "node, with a spare": (node, 5),
    "node, without one": (node_without_spare, 5),
    "head": (head, 5),
    "evaluator": (evaluator, 5),
    "registry client": (registry_client, 5),
    "scheduler": (scheduler, 5),
    "MLflow down for a minute": (mlflow_down, 5),
    "S3 answers 503 for 30 s": (s3_unavailable, 5),
    "clock jumps": (clock_jumps, 5),
    "disk full": (disk_full, 5),
    "truncated checkpoint": (truncated_checkpoint, 5),
    "changed shard": (changed_shard, 5),
}


def harm(name: str, world: World) -> tuple[bool, str]:
    """Whether it ended as it must, and what to tell of it."""
    try:
        return True, SCENARIOS[name][0](world)
    except (AssertionError, subprocess.TimeoutExpired, subprocess.CalledProcessError, TimeoutError) as error:
        return False, (str(error).strip().splitlines() or [type(error).__name__])[-1]
