"""A process or a whole machine is killed."""

import json
import time
from collections.abc import Iterator

from benchmarks.chaos.nodes import Nodes, Process, kill
from benchmarks.chaos.world import Run, World, processes, wait_for


def worker(world: World) -> list[str]:
    """A train worker is killed; Ray Train starts the group again from the last checkpoint."""
    run, notes = world.new_run(), []
    driver = world.begin(world.distill(run))
    for victim in _fresh(world, driver, world.nodes, "RayTrainWorker"):
        when = world.moment(world.took / 2)
        if not kill(victim):
            break
        notes.append(f"{when:.0f} s after it began")
    driver.ends_with(0)
    world.same(run)
    return notes


def driver(world: World) -> list[str]:
    """The driver is killed; the same command goes on."""
    run, notes = world.new_run(), []
    killed_again_and_again(world, world.distill(run), world.took, notes)
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
        process = world.begin(run.command("distill", "--ray-address", cluster.address))
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
        process = world.begin(run.command("distill", "--ray-address", cluster.address))
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
        kill(process.pid)
        process.wait()
        world.nodes = world.cluster()
        notes.append(f"{when:.0f} s after the start")
    world.finish(world.distill(run))
    world.same(run)
    return notes


def evaluator(world: World) -> list[str]:
    """An actor that evaluates is killed; the evaluation has every image, once."""
    run, notes = world.evaluated(), []
    command, expected = run.command("evaluate", "--ray-address", world.nodes.address), _scores(run)
    for _ in range(world.times):
        (run.folder / "evaluation").rename(run.folder / f"evaluation-{time.monotonic_ns()}")
        process = world.begin(command)
        victim = next(_fresh(world, process, world.nodes, "EvaluationWorker"), None)
        when = world.moment(3)
        if victim and kill(victim):
            notes.append(f"{when:.1f} s after it began")
        if process.ends_with(0, 1) != 0:
            world.finish(command)
        assert _scores(run) == expected, "other images"
    return notes


def registry_client(world: World) -> list[str]:
    """`register` is killed, and called again: one version."""
    run, notes = world.evaluated(), []
    killed_again_and_again(world, run.command("register"), 15, notes)
    world.finish(run.command("register"))
    world.finish(run.command("register"))
    assert run.versions() == 1
    return notes


def killed_again_and_again(world: World, command: list[str], longest: float, notes: list[str]) -> None:
    """Kill the process each time, until it lives longer than its moment."""
    for _ in range(world.times):
        process = world.begin(command)
        when = world.moment(longest)
        if process.poll() is not None:
            process.ends_with(0)
            return
        kill(process.pid)
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


def _scores(run: Run) -> list[tuple[str, int]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(run.folder / "evaluation/scores.parquet").to_pylist()
    return sorted((str(row["system"]) + str(row["prompt"]), int(row["seed"])) for row in rows)
