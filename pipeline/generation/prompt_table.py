"""Files of prompts, with a row for each: read and checked as a whole before anything is generated.

Rows are counted from 1 within their file: lines of text and JSON lines, and records of CSV and Parquet.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError, get_first_line, invalid
from pipeline.generation.image_request import ImageRequest, Method, Prompt, Scale, Seed, Text, choose_scale
from pipeline.hashing import hash_bytes
from pipeline.manifest import DataFile
from pipeline.storage import Folder
from pipeline.strict_model import STRICT, StrictModel, build_user_error

SHOWN = 60  # characters of a wrong value
INDEX_COLUMNS = "__index_level_"  # of pandas, which adds them to Parquet files
Rows = Iterator[tuple[int, dict[str, Any]]]


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


COLUMNS = tuple(_Row.model_fields)


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
    if not path.lower().endswith(tuple(_READERS)):
        raise invalid("prompts", path, f"a file that ends in {', '.join(_READERS)}")
    location = Folder.from_uri(path)
    return location.parent.read(location.uri.rpartition("/")[2])


def _parse(path: str, content: bytes, defaults: RowDefaults) -> Iterator[tuple[int, ImageRequest]]:
    read = next(reader for ending, reader in _READERS.items() if path.lower().endswith(ending))
    given = defaults.model_dump()
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


def _read_text(path: str, content: bytes) -> Rows:
    for number, line in _iter_lines(path, content):
        yield number, {"prompt": line}


def _read_json_lines(path: str, content: bytes) -> Rows:
    for number, line in _iter_lines(path, content):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise invalid(f"{path}: row {number}", line[:SHOWN], "a JSON object")
        yield number, values


def _read_csv(path: str, content: bytes) -> Rows:
    reader = csv.DictReader(io.StringIO(_decode(path, content), newline=""), strict=True)
    number = 0
    try:
        _check_columns(path, reader.fieldnames or [])
        for number, values in enumerate(reader, 1):
            if None in values:
                raise invalid(f"{path}: row {number}", values[None], "no more cells than the header has")
            cells = {name: cell for name, cell in values.items() if cell}
            numbers = {name: _parse_number(cells[name]) for name in ("seed", "scale") if name in cells}
            yield number, {**cells, **numbers}
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1}: is not valid CSV: {error}.") from None


def _read_parquet(path: str, content: bytes) -> Rows:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is not a readable Parquet file: {get_first_line(error)}") from None
    table = table.drop_columns([name for name in table.column_names if name.startswith(INDEX_COLUMNS)])
    _check_columns(path, table.column_names)
    number = 0
    for batch in table.to_batches():
        for values in batch.to_pylist():
            number += 1
            yield number, values


_READERS: dict[str, Callable[[str, bytes], Rows]] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}


def _iter_lines(path: str, content: bytes) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, with their numbers."""
    for number, line in enumerate(io.StringIO(_decode(path, content), newline=None), 1):
        if line.strip():
            yield number, line.strip()


def _decode(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: got byte {error.start}, which is not UTF-8; expected UTF-8 text.") from None


def _check_columns(path: str, names: Sequence[str]) -> None:
    """Reject a column that would be ignored, such as a misspelt one."""
    for name in names:
        if name not in COLUMNS:
            raise invalid(f"{path}: column", name, f"one of {', '.join(COLUMNS)}", "Rename it, or leave it out.")
        if list(names).count(name) > 1:
            raise invalid(f"{path}: column", name, "each column once")
    if names and "prompt" not in names:
        raise invalid(f"{path}: columns", ", ".join(names), "prompt among them")


def _parse_number(cell: str) -> int | float | str:
    """Return a cell's number; other text is left to the check of the row, which names it."""
    if "_" in cell:
        return cell
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell
