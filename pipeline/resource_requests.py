"""Resource requests of a command: checked against a local Ray session, waited for on a cluster."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import ray

from pipeline.errors import TransientError, UserError
from pipeline.recipe import Evaluation, Train

TIMEOUT_MINUTES = 10.0  # default of commands whose recipe sets none
GRACE_SECONDS = 10  # a cluster with free resources places a group faster than this


@dataclass(frozen=True)
class ResourceRequest:
    """A request of at least `count` processes with the Ray resources `per_process`.

    `section` and `process` name the recipe's fields: `train.cpus_per_worker` has section "train" and process "worker".
    """

    section: str
    process: str
    count: int
    per_process: dict[str, float]

    def __str__(self) -> str:
        """Return, for example, `2 workers with 1 CPU and 1 GPU each`."""
        words = " and ".join(f"{amount:g} {name}" for name, amount in self.per_process.items())
        return f"{self.processes} with {words} each"

    @property
    def processes(self) -> str:
        """The number of processes with their noun."""
        plural = "es" if self.process.endswith("s") else "s"
        return f"{self.count} {self.process}{plural if self.count > 1 else ''}"

    def get_recipe_field(self, resource: str) -> str:
        """Return the recipe field that asks for a resource."""
        return f"{self.section}.{resource.lower()}s_per_{self.process}".lstrip(".")


def build_training_request(train: Train) -> ResourceRequest:
    """Return the request of the fewest training workers, each with its text encoders."""
    cpus = train.cpus_per_worker + train.num_encoders * train.cpus_per_encoder
    gpus = train.gpus_per_worker + train.num_encoders * train.gpus_per_encoder
    return ResourceRequest("train", "worker", train.min_workers or train.num_workers, build_ray_resources(cpus, gpus))


def build_evaluation_request(options: Evaluation) -> ResourceRequest:
    """Return the request of one evaluation process, which is enough to evaluate everything."""
    resources = build_ray_resources(options.cpus_per_process, options.gpus_per_process)
    return ResourceRequest("evaluation", "process", 1, resources)


def build_ray_resources(cpus: float, gpus: float) -> dict[str, float]:
    """Return a resource dictionary with Ray's keys."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def wait_for_resources(
    request: ResourceRequest, timeout_minutes: float, address: str | None, log: Callable[[str], None] = print
) -> None:
    """Check that the Ray session can satisfy the request; on a cluster, wait for it to scale.

    Raises:
        UserError: if this machine, without an `address`, has too little.
        TransientError: if the cluster has not placed the request within `timeout_minutes`.
    """
    if address:
        _wait_for_placement(request, timeout_minutes, log)
    else:
        _check_local(request)


def _check_local(request: ResourceRequest) -> None:
    total = ray.cluster_resources()
    for name, amount in request.per_process.items():
        requested, available = amount * request.count, total.get(name, 0.0)
        if requested > available:
            raise UserError(
                f"{request.get_recipe_field(name)}: {request.processes} x {amount:g} {name} requested, "
                f"{available:g} available. Lower it, or pass --ray-address of a larger cluster."
            )


def _wait_for_placement(request: ResourceRequest, timeout_minutes: float, log: Callable[[str], None]) -> None:
    """Request everything as one placement group, which makes an autoscaling cluster grow."""
    group = ray.util.placement_group([request.per_process] * request.count)
    try:
        if group.wait(GRACE_SECONDS):
            return
        log(f"waiting up to {timeout_minutes:g} minutes for resources: {request}; {_describe_free_resources(request)}")
        if not group.wait(max(0, math.ceil(60 * timeout_minutes) - GRACE_SECONDS)):
            field = request.get_recipe_field(list(request.per_process)[-1])
            raise TransientError(
                f"{field}: {request} requested, and {_describe_free_resources(request)} after "
                f"{timeout_minutes:g} minutes. Request less, use a larger cluster, or raise "
                "train.resource_timeout_minutes."
            )
    finally:
        ray.util.remove_placement_group(group)


def _describe_free_resources(request: ResourceRequest) -> str:
    free, total = ray.available_resources(), ray.cluster_resources()
    parts = [f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name in request.per_process]
    return f"the cluster has {' and '.join(parts)} free"
