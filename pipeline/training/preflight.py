"""What must hold before a run: the store can be written, the cluster has what is asked for, the workers can talk."""

import math
import uuid
from collections.abc import Callable

import ray
import torch
import torch.distributed

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.storage import Folder

STARTS_SECONDS = 10  # in which a cluster that is there has placed the workers


def check_store(folder: Folder) -> None:
    """Write a small file, read it back, remove it.

    Raises:
        UserError: naming the folder and what failed.
    """
    name, content = f".probe-{uuid.uuid4().hex}", b"probe"
    folder.write(name, content)
    if folder.read(name) != content:
        raise UserError(f"{folder.uri}: what is written cannot be read back")
    folder.remove(name)


def check_resources(recipe: Recipe) -> None:
    """Of the Ray session at hand, which must not grow on demand: a cluster that does starts the machines it lacks."""
    workers, asked, has = *_asked(recipe), ray.cluster_resources()
    for name, each in asked.items():
        wanted, there = each * workers, has.get(name, 0.0)
        if wanted > there:
            raise UserError(
                f"train.{name.lower()}s_per_worker: {workers} workers x {each:g} ask for {wanted:g} {name}s, "
                f"and there are {there:g}; allowed: fewer workers, or a larger cluster by --address"
            )


def await_resources(recipe: Recipe, say: Callable[[str], None] = print) -> None:
    """Until the cluster has room for the workers all at once; asking for it makes a cluster that can grow do so.

    Raises:
        UserError: after the recipe's `train.wait_minutes`, with what was asked for and what there is.
    """
    workers, asked = _asked(recipe)
    room = ray.util.placement_group([asked] * workers)
    try:
        if room.wait(STARTS_SECONDS):
            return
        words = f"{workers} workers ask for {_words(asked)} each"
        say(f"waiting for room: {words}; {_there(asked)}; for {recipe.train.wait_minutes:g} minutes at most")
        if not room.wait(max(0, math.ceil(60 * recipe.train.wait_minutes) - STARTS_SECONDS)):
            raise UserError(
                f"train.workers: {words}, and {_there(asked)} after {recipe.train.wait_minutes:g} minutes; "
                "allowed: fewer workers, a larger cluster, or a longer train.wait_minutes"
            )
    finally:
        ray.util.remove_placement_group(room)


def _asked(recipe: Recipe) -> tuple[int, dict[str, float]]:
    """The fewest workers, and what one of them takes with its encoders."""
    train = recipe.train
    cpus = train.cpus_per_worker + train.encoders * train.cpus_per_encoder
    gpus = train.gpus_per_worker + train.encoders * train.gpus_per_encoder
    return train.min_workers or train.workers, {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _words(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _there(asked: dict[str, float]) -> str:
    """Free and whole, of the kinds that are asked for."""
    free, whole = ray.available_resources(), ray.cluster_resources()
    own = [f"{free.get(name, 0.0):g} of {whole.get(name, 0.0):g} {name}" for name in asked]
    return f"the cluster has {' and '.join(own)} free"


def check_workers(device: torch.device) -> None:
    """In every worker: add a one over all of them, by the backend that training uses.

    Raises:
        RuntimeError: where the sum is not the number of workers.
    """
    if not torch.distributed.is_initialized():
        return
    ones, workers = torch.ones(1, device=device), torch.distributed.get_world_size()
    torch.distributed.all_reduce(ones)
    if int(ones.item()) != workers:
        backend = torch.distributed.get_backend()
        raise RuntimeError(f"{backend}: {workers} workers added up to {ones.item():g}; they do not reach each other")
