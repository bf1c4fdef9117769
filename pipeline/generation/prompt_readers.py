"""Readers of prompt files by format; each yields the values of a row with the row's number.

Rows are counted from 1 within their file: lines of text and JSON lines, and records of CSV and Parquet.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, get_first_line, invalid

COLUMNS = ("prompt", "negative_prompt", "seed", "scale", "method")
SHOWN = 60  # characters of a wrong value
INDEX_COLUMNS = "__index_level_"  # of pandas, which adds them to Parquet files
Rows = Iterator[tuple[int, dict[str, Any]]]


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


READERS: dict[str, Callable[[str, bytes], Rows]] = {
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
