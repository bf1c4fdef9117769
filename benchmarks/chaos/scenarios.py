"""The table of scenarios: each injects faults into a run at random moments and asserts how it must end.

A scenario gets the harness and returns a note for each injected fault.
"""

import subprocess
import sys
from collections.abc import Callable

from benchmarks.chaos import corruption, kills, outages, schedules
from benchmarks.chaos.harness import Harness

Scenario = Callable[[Harness], list[str]]
SCENARIOS: dict[str, tuple[Scenario, int]] = {  # and the smallest number of injections to aim for
    "worker": (kills.kill_worker, 20),
    "driver": (kills.kill_driver, 20),
    "node, with a spare": (kills.kill_node, 5),
    "node, without one": (kills.kill_node_without_spare, 5),
    "head": (kills.kill_head, 5),
    "evaluator": (kills.kill_evaluator, 5),
    "registry client": (kills.kill_registry_client, 5),
    "scheduler": (schedules.kill_scheduler, 5),
    "clock jumps": (schedules.move_clock, 5),
    "MLflow down for a minute": (outages.stop_mlflow, 5),
    "S3 answers 503 for 30 s": (outages.fail_s3_requests, 5),
    "disk full": (outages.fill_disk, 5),
    "truncated checkpoint": (corruption.truncate_checkpoint, 5),
    "changed shard": (corruption.change_shard, 5),
}


def run_scenario(name: str, harness: Harness) -> tuple[bool, list[str]]:
    """Return whether the scenario passed, and its notes; if it failed, the last line of the error."""
    try:
        return True, SCENARIOS[name][0](harness)
    except (AssertionError, subprocess.TimeoutExpired, subprocess.CalledProcessError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return False, [(str(error).strip().splitlines() or [type(error).__name__])[-1]]
