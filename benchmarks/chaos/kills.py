"""Scenarios in which a process, a node or the whole cluster is killed."""

import json
import time
from collections.abc import Iterator

from benchmarks.chaos.harness import Harness, Run, find_processes, wait_for
from benchmarks.chaos.local_cluster import LocalCluster, Process, kill


def kill_worker(harness: Harness) -> list[str]:
    """Kill a train worker; Ray Train restarts the worker group from the latest checkpoint."""
    run, notes = harness.new_run(), []
    driver = harness.start(harness.distill(run))
    for victim in _new_processes(harness, driver, harness.cluster, "RayTrainWorker"):
        delay = harness.sleep_randomly(harness.seconds / 2)
        if not kill(victim):
            break
        notes.append(f"{delay:.0f} s after it began")
    driver.assert_exit(0)
    harness.assert_expected(run)
    return notes


def kill_driver(harness: Harness) -> list[str]:
    """Kill the driver; the same command resumes."""
    run, notes = harness.new_run(), []
    kill_repeatedly(harness, harness.distill(run), harness.seconds, notes)
    harness.run_to_end(harness.distill(run))
    harness.assert_expected(run)
    return notes


def kill_node(harness: Harness) -> list[str]:
    """Kill the node of both workers; a spare node takes over."""
    cluster, notes = harness.new_cluster(cpus=0), []
    try:
        used = cluster.add_node(2)
        run = harness.new_run()
        run.overrides |= {"train.cpus_per_worker": 0.8}
        process = harness.start(run.command("distill", "--ray-address", cluster.address))
        for _ in _new_processes(harness, process, cluster, "RayTrainWorker"):
            spare, delay = cluster.add_node(2), harness.sleep_randomly(harness.seconds / 2)
            if process.poll() is not None:
                break
            cluster.kill(used)
            used = spare
            notes.append(f"{delay:.0f} s after its workers began")
        process.assert_exit(0)
        harness.assert_expected(run)
        return notes
    finally:
        cluster.kill()


def kill_node_without_spare(harness: Harness) -> list[str]:
    """Kill one of two nodes; elastic training continues to the end on one worker."""
    cluster = harness.new_cluster(cpus=0)
    try:
        lost, _ = cluster.add_node(1), cluster.add_node(1)
        run = harness.new_run()
        run.overrides |= {"train.cpus_per_worker": 0.8, "train.min_workers": 1}
        process = harness.start(run.command("distill", "--ray-address", cluster.address))
        wait_for(lambda: run.checkpoints, "a checkpoint", process)
        delay = harness.sleep_randomly(3)
        cluster.kill(lost)
        process.assert_exit(0)
        state = json.loads(run.checkpoints[-1].read_text())
        assert (state["step"], state["workers"]) == (run.overrides["train.steps"], 1), state
        return [f"{delay:.1f} s after a checkpoint"]
    finally:
        cluster.kill()


def kill_head(harness: Harness) -> list[str]:
    """Kill the whole cluster; the same command resumes on a new one."""
    run, notes = harness.new_run(), []
    for _ in range(harness.times):
        process = harness.start(harness.distill(run))
        delay = harness.sleep_randomly()
        if process.poll() is not None:
            break
        harness.cluster.kill()
        kill(process.pid)
        process.wait()
        harness.cluster = harness.new_cluster()
        notes.append(f"{delay:.0f} s after the start")
    harness.run_to_end(harness.distill(run))
    harness.assert_expected(run)
    return notes


def kill_evaluator(harness: Harness) -> list[str]:
    """Kill an evaluation actor; the evaluation has every image exactly once."""
    run, notes = harness.new_evaluated_run(), []
    command, expected = run.command("evaluate", "--ray-address", harness.cluster.address), _scores(run)
    for _ in range(harness.times):
        (run.folder / "evaluation").rename(run.folder / f"evaluation-{time.monotonic_ns()}")
        process = harness.start(command)
        victim = next(_new_processes(harness, process, harness.cluster, "EvaluationWorker"), None)
        delay = harness.sleep_randomly(3)
        if victim and kill(victim):
            notes.append(f"{delay:.1f} s after it began")
        if process.assert_exit(0, 1) != 0:
            harness.run_to_end(command)
        assert _scores(run) == expected, "other images"
    return notes


def kill_registry_client(harness: Harness) -> list[str]:
    """Kill `register` and run it again; there is one version."""
    run, notes = harness.new_evaluated_run(), []
    kill_repeatedly(harness, run.command("register"), 15, notes)
    harness.run_to_end(run.command("register"))
    harness.run_to_end(run.command("register"))
    assert run.count_versions() == 1
    return notes


def kill_repeatedly(harness: Harness, command: list[str], longest: float, notes: list[str]) -> None:
    """Start the command and kill it at a random moment, again and again, until it ends before it is killed."""
    for _ in range(harness.times):
        process = harness.start(command)
        delay = harness.sleep_randomly(longest)
        if process.poll() is not None:
            process.assert_exit(0)
            return
        kill(process.pid)
        process.wait()
        notes.append(f"{delay:.0f} s after its start")


def _new_processes(harness: Harness, driver: Process, cluster: LocalCluster, name: str) -> Iterator[int]:
    """Yield the id of a new process of this name, up to `harness.times` times, while the driver lives."""
    pids: set[int] = set()

    def has_new_or_ended() -> bool:
        return bool(find_processes(cluster, name) - pids) or driver.poll() is not None

    for _ in range(harness.times):
        wait_for(has_new_or_ended, name)
        if driver.poll() is not None:
            return
        yield min(find_processes(cluster, name) - pids, default=0)
        pids.update(find_processes(cluster, name))


def _scores(run: Run) -> list[tuple[str, int]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(run.folder / "evaluation/scores.parquet").to_pylist()
    return sorted((str(row["system"]) + str(row["prompt"]), int(row["seed"])) for row in rows)
