"""The checkpoint that all ranks resume from: the newest intact one."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from pyarrow import fs
from ray.train import Checkpoint, CheckpointConsistencyMode

from pipeline.compat import CHECKPOINT_NAME, CHECKPOINT_PREFIX, SNAPSHOT_FILE, run_storage
from pipeline.errors import UserError
from pipeline.storage import Folder
from pipeline.training import checkpoint
from pipeline.training.checkpoint import STATE_FILE
from pipeline.training.distiller import Distiller
from pipeline.training.progress_actor import ProgressSink


def restore(distiller: Distiller, latest: Checkpoint | None, actor: ProgressSink, *, attempt: int = 0) -> int:
    """Load the newest intact checkpoint up to `latest`; return the next step.

    Without a `latest` Ray Train knows no checkpoint. An intact one in the run's storage is used all the same, since the
    snapshot file may have been lost. `attempt` is a lower bound of the restored attempt.

    Raises:
        UserError: if Ray Train knows checkpoints and all are corrupt; starting over is the user's decision.
    """
    corrupt = []
    for candidate in broadcast_checkpoints(list(_iter_newest_first(latest) if latest else _list_stored_checkpoints())):
        with candidate.as_directory() as folder:
            reason = find_first_error_across_ranks(checkpoint.find_corruption(Path(folder)))
            if not reason:
                step = checkpoint.load(distiller, Path(folder))
                distiller.attempt = max(distiller.attempt, attempt)
                return step
        corrupt.append(f"{candidate.path}: {reason}")
        if distiller.rank == 0:
            actor.log.remote(f"skipped a corrupt checkpoint: {corrupt[-1]}")
    if latest:
        raise UserError(
            f"every checkpoint is corrupt: {'; '.join(corrupt)}. "
            "Use another --run, or delete this run's `distilled` folder."
        )
    return 0


def wait_for_latest() -> Checkpoint | None:
    """Wait until reported checkpoints are committed; return the latest."""
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    return reported[-1].checkpoint if reported else None


def remove_uncommitted_checkpoints(folder: Folder) -> bool:
    """Delete checkpoints missing from Ray Train's snapshot, which may be incomplete.

    If the snapshot itself is corrupt, delete it instead and return True. Called before Ray Train reads the folder.
    """
    if not folder.exists(SNAPSHOT_FILE):
        return False
    try:
        committed = set(_iter_checkpoint_names(json.loads(folder.read(SNAPSHOT_FILE))))
    except ValueError:
        folder.remove(SNAPSHOT_FILE)
        return True
    for name in folder.list_dirs():
        if name.startswith(CHECKPOINT_PREFIX) and name not in committed:
            (folder / name).delete()
    return False


def _iter_checkpoint_names(node: Any) -> Iterator[str]:
    """Yield the checkpoint folders that Ray Train's snapshot names at any depth."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _iter_checkpoint_names(value)
    if isinstance(node, dict) and CHECKPOINT_NAME in node:
        yield str(node[CHECKPOINT_NAME])


def _iter_newest_first(latest: Checkpoint) -> Iterator[Checkpoint]:
    """Yield the latest checkpoint, then the earlier ones that are kept."""
    yield latest
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    yield from (each.checkpoint for each in reversed(reported) if each.checkpoint.path != latest.path)


def _list_stored_checkpoints() -> list[Checkpoint]:
    """Return the checkpoints in the run's storage, newest first."""
    storage = ray.train.get_context().get_storage()
    filesystem, root = run_storage(storage)
    checkpoints = []
    for entry in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):
        if entry.base_name.startswith(CHECKPOINT_PREFIX) and entry.type == fs.FileType.Directory:
            with suppress(OSError, ValueError, KeyError, TypeError):  # an incomplete checkpoint has no state file
                with filesystem.open_input_stream(f"{entry.path}/{STATE_FILE}") as stream:
                    state = json.loads(stream.read())
                checkpoints.append((int(state["attempt"]), int(state["step"]), str(entry.path)))
    return [Checkpoint(path, filesystem) for *_, path in sorted(checkpoints, reverse=True)]


def broadcast_checkpoints(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Return rank 0's checkpoints, in its order, on every rank."""
    if not dist.is_initialized():
        return checkpoints
    paths: list[Any] = [[each.path for each in checkpoints]]
    dist.broadcast_object_list(paths, src=0)
    filesystem, _ = run_storage(ray.train.get_context().get_storage())
    return [Checkpoint(path, filesystem) for path in paths[0]]


def find_first_error_across_ranks(error: str) -> str:
    """Return the first rank's error, so that a copy that is corrupt on one node is used on none."""
    if not dist.is_initialized():
        return error
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next(filter(None, errors), "")
