"""Files that are not what they were when the same command goes on."""

import os
import time
from contextlib import suppress

from benchmarks.chaos.nodes import kill
from benchmarks.chaos.world import Run, World, processes, wait_for


def truncated_checkpoint(world: World) -> list[str]:
    """The driver is killed and the newest checkpoint loses half of a file; the one before it is taken."""
    run, notes = world.new_run(), []
    for _ in range(world.times):
        start = time.time()
        process = world.begin(world.distill(run))
        wait_for(lambda start=start, process=process: _two_since(run, start) or process.poll() is not None, "two more")
        if not kill(process.pid):
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


def changed_shard(world: World) -> list[str]:
    """A shard of prompts changes between the driver's death and the restart: one clear line, and no training on it."""
    run, notes = world.new_run(), []
    process = world.begin(world.distill(run))
    wait_for(lambda: run.checkpoints, "a checkpoint", process)
    kill(process.pid)
    process.wait()
    (shard,) = (run.folder / "prompts").glob("shard-*.parquet")
    whole = shard.read_bytes()
    for _ in range(world.times):
        place = world.random.randrange(len(whole))
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        refused = world.begin(world.distill(run))
        refused.ends_with(2)
        assert "its content differs from the manifest's" in refused.printed, refused.printed[-3000:]
        notes.append(f"byte {place}")
    shard.write_bytes(whole)
    world.finish(world.distill(run))
    world.same(run)
    return notes


def _two_since(run: Run, start: float) -> bool:
    """Else, again and again, no whole one would be left of those that are kept."""
    with suppress(OSError):  # one that is removed meanwhile
        return sum(one.stat().st_mtime > start for one in run.checkpoints) >= 2
    return False
