"""All of a distillation's state in a folder: engines, moving average, step. It continues on any number of workers.

Where the number of workers or the ZeRO stage is another than at saving, DeepSpeed's universal format stands between.
Random numbers need no state: they follow from the seed, the step and an image's place; the data cursor is the step.
"""

import json
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from pipeline.training.distiller import Distiller

EMA_FILE, RAW_FILE = "ema.safetensors", "raw.safetensors"
STATE_FILE = "state.json"
LISTS = "files-"  # and the rank: what each process wrote
BLOCK = 2**22  # bytes


def save(distiller: Distiller, folder: Path, step: int) -> None:
    """This process's part; the parts of all processes in one folder are the checkpoint."""
    distiller.engines.save(folder)
    if distiller.rank == 0:
        save_file(distiller.ema, folder / EMA_FILE)
        save_file(distiller.student_weights(), folder / RAW_FILE)
        (folder / STATE_FILE).write_text(json.dumps({"step": step, "attempt": distiller.attempt, **_layout(distiller)}))
    (folder / f"{LISTS}{distiller.rank}.json").write_text(json.dumps(_listed(folder)))


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint: a part that is missing, cut short or changed; empty where it is whole."""
    try:
        workers = int(json.loads((folder / STATE_FILE).read_text())["workers"])
        if workers < 1:
            return f"{STATE_FILE} is of {workers} processes"
        for rank in range(workers):
            listed = json.loads((folder / f"{LISTS}{rank}.json").read_text())
            if not listed or (rank == 0 and not {STATE_FILE, EMA_FILE, RAW_FILE} <= set(listed)):
                return f"{LISTS}{rank}.json does not list all its process wrote"
            for name, told in listed.items():
                if _sum(folder / name) != told:
                    return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE_FILE} or a list of files is not valid"
    return ""


def require_plain(folder: Path) -> None:
    """Refuse files of DeepSpeed's that are more than tensors and plain values: as pickles they could run code.

    Raises:
        UserError: naming the file.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    for path in folder.rglob("*"):
        if path.is_symlink():  # DeepSpeed would follow it, out of the folder
            raise UserError(f"{path}: is a link, and is not followed; allowed: checkpoints that this program wrote")
    with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
        for file in sorted(folder.rglob("*.pt")):
            try:
                torch.load(file, map_location="meta", weights_only=True, mmap=True)
            except Exception as error:  # a damaged or hostile file may raise anything
                raise UserError(
                    f"{file}: holds more than tensors and numbers, and is not loaded "
                    f"({type(error).__name__}); allowed: checkpoints that this program wrote"
                ) from None


def _listed(folder: Path) -> dict[str, list[int]]:
    """This process's files."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): _sum(file) for file in files}


def _sum(file: Path) -> list[int]:
    """Size and CRC-32: against accidents, not against people."""
    total = size = 0
    with open(file, "rb") as stream:
        while part := stream.read(BLOCK):
            total, size = zlib.crc32(part, total), size + len(part)
    return [size, total]


def load(distiller: Distiller, folder: Path) -> int:
    """Put the checkpoint's state into the process; returns the first step to do."""
    state = json.loads((folder / STATE_FILE).read_text())
    require_plain(folder)
    if _layout(distiller).items() <= state.items():
        distiller.engines.load(folder)
    else:
        _load_universal(distiller, folder)
    distiller.attempt = state["attempt"]
    device = distiller.null.states.device
    distiller.ema = {name: value.to(device) for name, value in load_file(folder / EMA_FILE).items()}
    return int(state["step"])


def _layout(distiller: Distiller) -> dict[str, Any]:
    return {"workers": distiller.world_size, "zero_stage": distiller.recipe.train.zero_stage}


def _load_universal(distiller: Distiller, folder: Path) -> None:
    """Each process converts for itself: what it needs is then on its own disk, whatever the machines share."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, _ in distiller.engines.named():
            _convert(folder / name, Path(scratch) / name)
        distiller.engines.load(Path(scratch), universal=True)


def _convert(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source}: not to be converted for another number of workers: {done.stderr[-400:]}")
