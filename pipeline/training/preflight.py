"""What must hold before a run: the store can be written, the workers can talk."""

import uuid

import torch
import torch.distributed

from pipeline.errors import UserError
from pipeline.storage import Folder


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
