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
    "worker": (kills.worker, 20),
    "driver": (kills.driver, 20),
    "node, with a spare": (kills.node, 5),
    "node, without one": (kills.node_without_spare, 5),
    "head": (kills.head, 5),
    "evaluator": (kills.evaluator, 5),
    "registry client": (kills.registry_client, 5),
    "scheduler": (schedules.scheduler, 5),
    "clock jumps": (schedules.clock_jumps, 5),
    "MLflow down for a minute": (outages.mlflow_down, 5),
    "S3 answers 503 for 30 s": (outages.s3_unavailable, 5),
    "disk full": (outages.disk_full, 5),
    "truncated checkpoint": (corruption.truncated_checkpoint, 5),
    "changed shard": (corruption.changed_shard, 5),
}


def run_scenario(name: str, harness: Harness) -> tuple[bool, list[str]]:
    """Return whether the scenario passed, and its notes; if it failed, the last line of the error."""
    try:
        return True, SCENARIOS[name][0](harness)
    except (AssertionError, subprocess.TimeoutExpired, subprocess.CalledProcessError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return False, [(str(error).strip().splitlines() or [type(error).__name__])[-1]]
