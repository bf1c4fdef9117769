"""All kinds of harm by name: each gets the world, does harm at random moments, and asserts how that must end.

What is returned is a note for each time that harm was done in the run.
"""

import subprocess
import sys
from collections.abc import Callable

from benchmarks.chaos import damage, kills, outages, scheduling
from benchmarks.chaos.world import World

Scenario = Callable[[World], list[str]]
SCENARIOS: dict[str, tuple[Scenario, int]] = {  # and how often at least
    "worker": (kills.worker, 20),
    "driver": (kills.driver, 20),
    "node, with a spare": (kills.node, 5),
    "node, without one": (kills.node_without_spare, 5),
    "head": (kills.head, 5),
    "evaluator": (kills.evaluator, 5),
    "registry client": (kills.registry_client, 5),
    "scheduler": (scheduling.scheduler, 5),
    "clock jumps": (scheduling.clock_jumps, 5),
    "MLflow down for a minute": (outages.mlflow_down, 5),
    "S3 answers 503 for 30 s": (outages.s3_unavailable, 5),
    "disk full": (outages.disk_full, 5),
    "truncated checkpoint": (damage.truncated_checkpoint, 5),
    "changed shard": (damage.changed_shard, 5),
}


def harm(name: str, world: World) -> tuple[bool, list[str]]:
    """Whether all ended as it must, and a note for each time; of one that did not, what was found, in its last line."""
    try:
        return True, SCENARIOS[name][0](world)
    except (AssertionError, subprocess.TimeoutExpired, subprocess.CalledProcessError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return False, [(str(error).strip().splitlines() or [type(error).__name__])[-1]]
