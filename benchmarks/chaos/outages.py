"""Scenarios in which MLflow, S3 or the disk fails for a while."""

import errno
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.chaos.fault_proxy import FaultProxy
from benchmarks.chaos.harness import Harness, wait_for
from benchmarks.chaos.local_cluster import free_ports, kill_group, wait_for_port


def stop_mlflow(harness: Harness) -> list[str]:
    """Stop the tracking server for a minute during training."""
    run, notes = harness.new_run(), []
    (port,) = free_ports(1)
    run.tracking_uri, store = f"http://127.0.0.1:{port}", f"sqlite:///{run.folder}/server.db"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port)]
    command += ["--artifacts-destination", str(run.folder / "artifacts"), "--workers", "1"]
    server = harness.start(command)
    try:
        wait_for_port(port)
        process = harness.start(harness.distill(run))
        wait_for((run.folder / "distilled/run.json").is_file, "the run's record", process)
        delay = harness.sleep_randomly(harness.seconds / 2)
        ended = process.poll() is not None
        kill_group(server)
        time.sleep(60)
        server = harness.start(command)
        process.assert_exit(0)
    finally:
        kill_group(server)
    harness.assert_expected(run)
    return notes if ended else [f"{delay:.0f} s after the run's record"]


def fail_s3_requests(harness: Harness) -> list[str]:
    """Answer every request to the store with 503 for half a minute at a time during training."""
    notes, (port,) = [], free_ports(1)
    store = harness.start([sys.executable, "-m", "moto.server", "-p", str(port)])
    proxy = FaultProxy(f"http://127.0.0.1:{port}", harness.s3_port).start()
    try:
        wait_for_port(port)
        _create_bucket("chaos")
        run = harness.new_run(bucket="chaos")
        process = harness.start(harness.distill(run))
        while len(notes) < harness.times:
            delay = harness.sleep_randomly()
            if process.poll() is not None:
                break
            before, proxy.fault, proxy.matches = proxy.requests, "503", lambda number, path: True
            time.sleep(30)
            proxy.fault = None
            notes.append(f"{delay:.0f} s later, {proxy.requests - before} requests failed")
            time.sleep(30)
        process.assert_exit(0)
        harness.assert_expected(run)
    finally:
        proxy.stop()
        kill_group(store)
    return notes


def fill_disk(harness: Harness) -> list[str]:
    """Fill the run's disk at a random moment; with free space again the same command resumes."""
    run, notes = harness.new_run(), []
    target = run.folder / "distilled"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(target)], check=True)
    try:
        for _ in range(harness.times):
            process = harness.start(harness.distill(run, "--set", "train.max_failures=0"))
            delay = harness.sleep_randomly()
            if process.poll() is not None:
                break
            filler = _write_filler(target)
            code = process.assert_exit(0, 1, 2)
            filler.unlink()
            notes.append(f"{delay:.0f} s after the start, exit {code}")
            assert "Traceback" not in process.output, process.output[-3000:]
            assert code == 0 or "No space left on device" in process.output, process.output[-3000:]
            if code == 0:
                break
        harness.run_to_end(harness.distill(run))
        harness.assert_expected(run)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    return notes


def _create_bucket(name: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket=name)


def _write_filler(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * 4096):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler
