"""Scenarios in which files change between a failure and the restart."""

import os
import time
from contextlib import suppress

from benchmarks.chaos.harness import Harness, Run, find_processes, wait_for
from benchmarks.chaos.local_cluster import kill


def truncate_checkpoint(harness: Harness) -> list[str]:
    """Kill the driver and truncate a file of the newest checkpoint; the one before it is used."""
    run, notes = harness.new_run(), []
    for _ in range(harness.times):
        start = time.time()
        process = harness.start(harness.distill(run))
        wait_for(
            lambda start=start, process=process: _has_two_since(run, start) or process.poll() is not None, "checkpoints"
        )
        if not kill(process.pid):
            break
        process.wait()
        wait_for(lambda: not find_processes(harness.cluster, "RayTrainWorker"), "end of the workers")
        files = sorted(path for path in run.checkpoints[-1].parent.rglob("*") if path.is_file())
        victim = harness.random.choice([path for path in files if path.stat().st_size > 1])
        os.truncate(victim, victim.stat().st_size // 2)
        notes.append(f"{victim.parent.name}/{victim.name}")
    harness.run_to_end(harness.distill(run))
    harness.assert_expected(run)
    return notes


def change_shard(harness: Harness) -> list[str]:
    """Change a shard of prompts after the driver died; the restart fails with one clear line."""
    run, notes = harness.new_run(), []
    process = harness.start(harness.distill(run))
    wait_for(lambda: run.checkpoints, "a checkpoint", process)
    kill(process.pid)
    process.wait()
    (shard,) = (run.folder / "prompts").glob("shard-*.parquet")
    content = shard.read_bytes()
    for _ in range(harness.times):
        offset = harness.random.randrange(len(content))
        shard.write_bytes(content[:offset] + bytes([content[offset] ^ 255]) + content[offset + 1 :])
        rejected = harness.start(harness.distill(run))
        rejected.assert_exit(2)
        assert "its content differs from the manifest's" in rejected.output, rejected.output[-3000:]
        notes.append(f"byte {offset}")
    shard.write_bytes(content)
    harness.run_to_end(harness.distill(run))
    harness.assert_expected(run)
    return notes


def _has_two_since(run: Run, start: float) -> bool:
    """Tell whether two checkpoints are newer; with fewer, repeated truncation would leave none of those kept intact."""
    with suppress(OSError):  # a checkpoint that is removed meanwhile
        return sum(file.stat().st_mtime > start for file in run.checkpoints) >= 2
    return False
