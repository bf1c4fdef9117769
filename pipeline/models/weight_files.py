"""Weight files: location, reading and layout."""

import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import get_first_line, invalid
from pipeline.model_download import download_folder, is_hub_id

CONFIGURATION = ("*.json", "*.txt")  # downloaded with the weights
SHOWN_NAMES = 3  # names shown in an error


def find_weights_file(path_or_id: str, field: str, names: Sequence[str]) -> Path:
    """Return the file itself, or the first of `names` in a local folder, an S3 folder or a hub repository.

    Raises:
        UserError: naming `field`, if there is none.
    """
    error = invalid(field, path_or_id, f"a file, or a folder or a hub id that holds {' or '.join(names)}")
    if not path_or_id:
        raise error
    file = Path(path_or_id).expanduser()
    if file.is_file():
        return file
    for name in names:
        wanted = (name, *CONFIGURATION) if is_hub_id(path_or_id) else ()
        if (file := _download_once(path_or_id, field, wanted) / name).is_file():
            return file
    raise error


@cache  # download once
def _download_once(path_or_id: str, field: str, wanted: tuple[str, ...]) -> Path:
    return download_folder(path_or_id, field, wanted=wanted)


def read_tensors(file: Path, field: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or torch file, at its top or under `state_dict` or `params`.

    A torch file's tensors are mapped into memory: reading their names and shapes costs nothing.

    Raises:
        UserError: naming `field`, if the file is damaged or holds anything but tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        expected = f".safetensors, or a torch file of tensors alone (cannot be read: {get_first_line(error)})"
        raise invalid(field, str(file), expected) from None
    for key in ("state_dict", "params"):
        content = content.get(key, content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise invalid(field, str(file), "a mapping of names to tensors, or one under `state_dict` or `params`")
    return dict(content)


def require_layout(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path, field: str) -> None:
    """Check that the tensors have the expected names and shapes.

    Raises:
        UserError: naming the first tensors that are missing, unknown or of another shape.
    """
    differences = {
        "lacks": sorted(set(expected) - set(tensors)),
        "holds an unknown": sorted(set(tensors) - set(expected)),
        "has another shape of": sorted(
            name for name in set(tensors) & set(expected) if tensors[name].shape != expected[name].shape
        ),
    }
    described = [
        f"{verb} {', '.join(map(repr, names[:SHOWN_NAMES]))}" + ", ..." * (len(names) > SHOWN_NAMES)
        for verb, names in differences.items()
        if names
    ]
    if described:
        raise invalid(field, str(file), f"weights of this metric's model (the file {'; '.join(described)})")
