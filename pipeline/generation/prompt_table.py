"""Files of prompts, with a row for each: read and checked as a whole before anything is generated."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError, invalid
from pipeline.generation.image_request import ImageRequest, Method, Prompt, Scale, Seed, Text, choose_scale
from pipeline.generation.prompt_readers import COLUMNS, READERS, SHOWN
from pipeline.hashing import hash_bytes
from pipeline.manifest import DataFile
from pipeline.storage import Folder
from pipeline.strict_model import STRICT, StrictModel, build_user_error


class RowDefaults(StrictModel):
    """Values of rows that have none of their own; a `scale` of None is the method's default."""

    negative_prompt: Text = ""
    seed: Seed = 0
    scale: Scale | None = None
    method: Method = "nasa"


class _Row(BaseModel):
    model_config = ConfigDict(**STRICT, frozen=True)

    prompt: Prompt
    negative_prompt: Text
    seed: Seed
    scale: Scale | None
    method: Method


assert set(_Row.model_fields) == set(COLUMNS)


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of a file, with its place."""

    file: str
    row: int
    request: ImageRequest


@dataclass(frozen=True)
class PromptTable:
    """All rows, and the files that they come from."""

    files: dict[str, DataFile]
    rows: list[PromptRow]


def read_prompt_table(paths: Sequence[str], defaults: RowDefaults) -> PromptTable:
    """Return the rows of files, local or on S3.

    Raises:
        UserError: A file cannot be read or has no row, or a value is not accepted; it names file, row and field.
    """
    files: dict[str, DataFile] = {}
    rows: list[PromptRow] = []
    for path in paths:
        if path in files:
            raise invalid("prompts", path, "each file once")
        content = _read(path)
        read = [PromptRow(path, number, request) for number, request in _parse(path, content, defaults)]
        if not read:
            raise UserError(f"{path}: got no rows; expected one prompt or more.")
        files[path] = DataFile(rows=len(read), bytes=len(content), sha256=hash_bytes(content))
        rows += read
    return PromptTable(files, rows)


def _read(path: str) -> bytes:
    if not path.lower().endswith(tuple(READERS)):
        raise invalid("prompts", path, f"a file that ends in {', '.join(READERS)}")
    location = Folder.from_uri(path)
    return location.parent.read(location.uri.rpartition("/")[2])


def _parse(path: str, content: bytes, defaults: RowDefaults) -> Iterator[tuple[int, ImageRequest]]:
    read = next(reader for ending, reader in READERS.items() if path.lower().endswith(ending))
    given = {name: getattr(defaults, name) for name in RowDefaults.model_fields}
    for number, values in read(path, content):
        yield number, _build_request(f"{path}: row {number}", {**given, **_drop_missing(values)})


def _build_request(place: str, values: Mapping[str, Any]) -> ImageRequest:
    try:
        row = _Row.model_validate(values)
    except ValidationError as error:
        details = error.errors()[0]
        if isinstance(details["input"], str) and len(details["input"]) > SHOWN:
            details["input"] = f"{details['input'][:SHOWN]}..."
        raise build_user_error(details, _Row, place) from None
    return ImageRequest(row.prompt, row.seed, row.negative_prompt, choose_scale(row.method, row.scale), row.method)


def _drop_missing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are there; pandas writes missing ones as NaN, and whole numbers beside them as 3.0."""
    kept = {name: value for name, value in values.items() if value is not None and value == value}  # noqa: PLR0124
    if isinstance(seed := kept.get("seed"), float) and seed.is_integer():
        kept["seed"] = int(seed)
    return kept
