"""Outages of what a run needs, and full disks."""

import errno
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chaos.faults import Faults
from benchmarks.chaos.nodes import await_port, end, free_ports
from benchmarks.chaos.world import World, wait_for


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
        wait_for((run.folder / "distilled/run.json").is_file, "the run's record", process)
        when = world.moment(world.took / 2)
        ended = process.poll() is not None
        end(server)
        time.sleep(60)
        server = world.begin(command)
        process.ends_with(0)
    finally:
        end(server)
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
        end(store)
    return notes


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


def _create_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


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
