"""Room for what a command runs: what this machine lacks is named at once; a cluster is given time to make it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import ray

from pipeline.errors import PassingError, UserError
from pipeline.recipe import Evaluation, Train

WAIT_MINUTES = 10.0  # of what has no recipe that says it
STARTS_SECONDS = 10  # in which a cluster that has room has given it


@dataclass(frozen=True)
class Ask:
    """So many processes at least, with such resources each; `section` and `one` are what their options are named by."""

    section: str
    one: str
    count: int
    each: dict[str, float]

    def __str__(self) -> str:
        words = " and ".join(f"{amount:g} {name}" for name, amount in self.each.items())
        return f"{self.many} with {words} each"

    @property
    def many(self) -> str:
        plural = "es" if self.one.endswith("s") else "s"
        return f"{self.count} {self.one}{plural if self.count > 1 else ''}"

    def field(self, resource: str) -> str:
        return f"{self.section}.{resource.lower()}s_per_{self.one}".lstrip(".")


def of_training(train: Train) -> Ask:
    """The fewest workers, each with its encoders."""
    cpus = train.cpus_per_worker + train.encoders * train.cpus_per_encoder
    gpus = train.gpus_per_worker + train.encoders * train.gpus_per_encoder
    return Ask("train", "worker", train.min_workers or train.workers, each(cpus, gpus))


def of_evaluation(options: Evaluation) -> Ask:
    """One process: it does the work of all where there is no room for more."""
    return Ask("evaluation", "process", 1, each(options.cpus_per_process, options.gpus_per_process))


def each(cpus: float, gpus: float) -> dict[str, float]:
    """As Ray names them."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def require_room(ask: Ask, wait_minutes: float, address: str | None, say: Callable[[str], None] = print) -> None:
    """In the Ray session at hand: a cluster's, where there is an `address`, or one of this machine alone.

    Raises:
        UserError: with what is asked for and what there is; of a cluster a PassingError, after `wait_minutes`.
    """
    if address:
        _await(ask, wait_minutes, say)
    else:
        _check(ask)


def _check(ask: Ask) -> None:
    has = ray.cluster_resources()
    for name, amount in ask.each.items():
        wanted, there = amount * ask.count, has.get(name, 0.0)
        if wanted > there:
            raise UserError(
                f"{ask.field(name)}: {ask.many} x {amount:g} ask for {wanted:g} {name}s, and there are {there:g}; "
                "allowed: fewer, or a larger cluster by --address"
            )


def _await(ask: Ask, wait_minutes: float, say: Callable[[str], None]) -> None:
    """All of it is asked for at once, which makes a cluster that can grow do so."""
    room = ray.util.placement_group([ask.each] * ask.count)
    try:
        if room.wait(STARTS_SECONDS):
            return
        say(f"waiting for room: {ask}; {_there(ask)}; for {wait_minutes:g} minutes at most")
        if not room.wait(max(0, math.ceil(60 * wait_minutes) - STARTS_SECONDS)):
            raise PassingError(
                f"{ask.field(list(ask.each)[-1])}: {ask} are asked for, and {_there(ask)} after {wait_minutes:g} "
                "minutes; allowed: fewer, a larger cluster, or a longer wait_minutes"
            )
    finally:
        ray.util.remove_placement_group(room)


def _there(ask: Ask) -> str:
    """Free and whole, of the kinds that are asked for."""
    free, whole = ray.available_resources(), ray.cluster_resources()
    own = [f"{free.get(name, 0.0):g} of {whole.get(name, 0.0):g} {name}" for name in ask.each]
    return f"the cluster has {' and '.join(own)} free"
