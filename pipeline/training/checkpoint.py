"""Checkpoints: engines, EMA weights and step in one folder, restored on any number of workers.

Another number of workers or another ZeRO stage goes through `checkpoint_layout`. Random numbers
have no state: they follow from the seed, the step and an image's index in the batch. The data cursor is the step.
"""

import json
import tempfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.training import checkpoint_layout
from pipeline.training.distiller import Distiller

EMA_FILE, RAW_FILE = "ema.safetensors", "raw.safetensors"
STATE_FILE = "state.json"
FILE_LIST_PREFIX = "files-"  # then the rank; the file has the checksums of the files that it wrote
BLOCK_BYTES = 2**22


def save(distiller: Distiller, folder: Path, step: int) -> None:
    """Write this rank's part; the parts of all ranks in one folder make the checkpoint."""
    distiller.engines.save(folder)
    weights = distiller.collect_student_weights()
    if distiller.rank == 0:
        save_file(distiller.ema, folder / EMA_FILE)
        save_file(weights, folder / RAW_FILE)
        (folder / STATE_FILE).write_text(
            json.dumps({"step": step, "attempt": distiller.attempt, **_describe_layout(distiller)})
        )
    (folder / f"{FILE_LIST_PREFIX}{distiller.rank}.json").write_text(json.dumps(_compute_checksums(folder)))


def find_corruption(folder: Path) -> str:
    """Return what is corrupt in a checkpoint, a missing, truncated or changed file; an empty string if it is intact."""
    try:
        workers = int(json.loads((folder / STATE_FILE).read_text())["workers"])
        if workers < 1:
            return f"{STATE_FILE} names {workers} workers"
        for rank in range(workers):
            listed = json.loads((folder / f"{FILE_LIST_PREFIX}{rank}.json").read_text())
            if not listed or (rank == 0 and not {STATE_FILE, EMA_FILE, RAW_FILE} <= set(listed)):
                return f"{FILE_LIST_PREFIX}{rank}.json does not list all files of its rank"
            for name, expected in listed.items():
                if _compute_checksum(folder / name) != expected:
                    return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE_FILE} or a list of files is not valid"
    return ""


def require_safe_pickles(folder: Path) -> None:
    """Reject DeepSpeed files that hold more than tensors and plain values: such pickles can run code.

    Raises:
        UserError: naming the file.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    for path in folder.rglob("*"):
        if path.is_symlink():  # DeepSpeed would follow it, out of the folder
            raise UserError(
                f"{path}: is a symbolic link, which is not followed. Use checkpoints that this program wrote."
            )
    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        for file in sorted(folder.rglob("*.pt")):
            try:
                torch.load(file, map_location="meta", weights_only=True, mmap=True)
            except Exception as error:  # a corrupt or malicious file may raise anything
                raise UserError(
                    f"{file}: holds more than tensors and numbers and is not loaded "
                    f"({type(error).__name__}). Use checkpoints that this program wrote."
                ) from None


def _compute_checksums(folder: Path) -> dict[str, list[int]]:
    """Return the checksums of this rank's files."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): _compute_checksum(file) for file in files}


def _compute_checksum(file: Path) -> list[int]:
    """Return size and CRC-32, which detect accidents, not manipulation."""
    total = size = 0
    with file.open("rb") as stream:
        while part := stream.read(BLOCK_BYTES):
            total, size = zlib.crc32(part, total), size + len(part)
    return [size, total]


def load(distiller: Distiller, folder: Path) -> int:
    """Restore the checkpoint's state; return the next step."""
    state = json.loads((folder / STATE_FILE).read_text())
    require_safe_pickles(folder)
    if _describe_layout(distiller).items() <= state.items():
        distiller.engines.load(folder)
    else:
        _load_converted(distiller, folder, state["zero_stage"])
    distiller.attempt = state["attempt"]
    if distiller.rank == 0:
        device = distiller.null.embeds.device
        distiller.ema = {name: value.to(device) for name, value in load_file(folder / EMA_FILE).items()}
    return int(state["step"])


def _describe_layout(distiller: Distiller) -> dict[str, int]:
    return {"workers": distiller.world_size, "zero_stage": distiller.recipe.train.zero_stage}


def _load_converted(distiller: Distiller, folder: Path, stage: int) -> None:
    """Convert on every rank, so that the converted files are on its own disk without a shared file system."""
    for name, engine in distiller.engines.list_named():
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint_layout.convert(folder / name, Path(scratch), stage, engine.module)
            checkpoint_layout.load(engine, Path(scratch), distiller.recipe.train.zero_stage)
