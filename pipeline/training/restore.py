"""Which checkpoint the processes go on from: the newest that is whole, and the same for all of them."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from pyarrow import fs
from ray.train import Checkpoint, CheckpointConsistencyMode

from pipeline.errors import UserError
from pipeline.storage import Folder
from pipeline.training import checkpoint
from pipeline.training.checkpoint import STATE_FILE
from pipeline.training.distiller import Distiller

PREFIX = "checkpoint_"  # of Ray Train's folders
LIST = "checkpoint_manager_snapshot.json"  # Ray Train's own, of those that are kept


def restore(distiller: Distiller, latest: Checkpoint | None, board: Any, *, attempt: int = 0) -> int:
    """Load the newest whole checkpoint up to `latest`; returns the first step to do.

    Without a `latest` Ray Train knows of none: what lies there all the same is taken, if it is whole, as the list of
    them may be lost. `attempt` is at least that of now.

    Raises:
        UserError: where Ray Train knows of checkpoints and none is whole; to begin anew is a person's decision.
    """
    faults = []
    for each in _by_all(list(_backwards(latest) if latest else _found())):
        with each.as_directory() as folder:
            fault = _of_all(checkpoint.fault(Path(folder)))
            if not fault:
                first = checkpoint.load(distiller, Path(folder))
                distiller.attempt = max(distiller.attempt, attempt)
                return first
        faults.append(f"{each.path}: {fault}")
        if distiller.rank == 0:
            board.say.remote(f"left out a checkpoint that is not whole: {faults[-1]}")
    if latest:
        raise UserError(
            f"no checkpoint is whole: {'; '.join(faults)}; allowed: another --run, or this one's `distilled` removed"
        )
    return 0


def stored() -> Checkpoint | None:
    """The latest checkpoint, when all that are on their way have arrived."""
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    return reported[-1].checkpoint if reported else None


def tidy(folder: Folder) -> bool:
    """Before Ray Train looks into this folder: remove the checkpoints that its list does not name, as a full disk may
    have cut them short, or the list, which is written in place, where it is damaged. Returns whether it was.
    """
    if not folder.has(LIST):
        return False
    try:
        named = set(_named(json.loads(folder.read(LIST))))
    except ValueError:
        folder.remove(LIST)
        return True
    for name in folder.folders():
        if name.startswith(PREFIX) and name not in named:
            (folder / name).delete()
    return False


def _named(node: Any) -> Iterator[str]:
    """The checkpoints in Ray Train's list, wherever they stand in it."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _named(value)
    if isinstance(node, dict) and "checkpoint_dir_name" in node:
        yield str(node["checkpoint_dir_name"])


def _backwards(latest: Checkpoint) -> Iterator[Checkpoint]:
    """The latest, and those before it that are kept."""
    yield latest
    kept = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    yield from (each.checkpoint for each in reversed(kept) if each.checkpoint.path != latest.path)


def _found() -> list[Checkpoint]:
    """What lies in the run's storage, the newest first."""
    storage = ray.train.get_context().get_storage()
    filesystem, place = storage.storage_filesystem, storage.experiment_fs_path
    found = []
    for entry in filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True)):
        if entry.base_name.startswith(PREFIX) and entry.type == fs.FileType.Directory:
            with suppress(OSError, ValueError, KeyError, TypeError):  # not whole: it has no state
                with filesystem.open_input_stream(f"{entry.path}/{STATE_FILE}") as stream:
                    state = json.loads(stream.read())
                found.append((int(state["attempt"]), int(state["step"]), str(entry.path)))
    return [Checkpoint(path, filesystem) for *_, path in sorted(found, reverse=True)]


def _by_all(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Those that rank 0 sees, in its order."""
    if not dist.is_initialized():
        return checkpoints
    paths: list[Any] = [[each.path for each in checkpoints]]
    dist.broadcast_object_list(paths, src=0)
    filesystem = ray.train.get_context().get_storage().storage_filesystem
    return [Checkpoint(path, filesystem) for path in paths[0]]


def _of_all(fault: str) -> str:
    """The first fault that any process has found: a damaged copy on one machine is nobody's start."""
    if not dist.is_initialized():
        return fault
    faults: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return next(filter(None, faults), "")
