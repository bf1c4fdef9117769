"""Files of weights: where they lie, what they hold, and their hash."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError
from pipeline.hub import is_hub_id, local_folder

CONFIGURATION = ("*.json", "*.txt")  # fetched with the weights


def weights_file(place: str, field: str, names: Sequence[str]) -> Path:
    """The file itself, or the first of `names` that is in the folder: a local one, on S3 or on the hub."""
    allowed = f"allowed: a file, or a folder or a hub id that holds {' or '.join(names)}"
    if not place:
        raise UserError(f"{field}: {place!r} names no weights; {allowed}")
    file = Path(place).expanduser()
    if file.is_file():
        return file
    for name in names:
        file = _folder(place, field, (name, *CONFIGURATION) if is_hub_id(place) else ()) / name
        if file.is_file():
            return file
    raise UserError(f"{field}: {place!r} is not there, or holds no weights; {allowed}")


@cache  # what lies elsewhere is fetched once
def _folder(place: str, field: str, wanted: tuple[str, ...]) -> Path:
    return local_folder(place, field, wanted=wanted)


def read_tensors(file: Path, field: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors, or of a torch file, at its top or under `state_dict`, `params`; no other pickles.

    A torch file's tensors are mapped into memory: to look at their names and shapes costs nothing.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{field}: {str(file)!r} cannot be read: {_first_line(error)}; "
            "allowed: .safetensors, or a torch file of tensors alone"
        ) from None
    for key in ("state_dict", "params"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            f"{field}: {str(file)!r} is no table of tensors; allowed: names with tensors, or a `state_dict`"
        )
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_layout(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path, field: str) -> None:
    """Raises a UserError that names the first tensors that are missing, unknown or of another shape."""
    wrong = {
        "lacks": sorted(set(wanted) - set(found)),
        "holds an unknown": sorted(set(found) - set(wanted)),
        "has another shape of": sorted(
            name for name in set(found) & set(wanted) if found[name].shape != wanted[name].shape
        ),
    }
    faults = [
        f"{verb} {', '.join(map(repr, names[:3]))}" + ", ..." * (len(names) > 3)
        for verb, names in wrong.items()
        if names
    ]
    if faults:
        raise UserError(f"{field}: {str(file)!r} {'; '.join(faults)}; allowed: weights of this metric's model")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
