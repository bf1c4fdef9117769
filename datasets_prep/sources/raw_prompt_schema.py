"""The schema of raw prompts, and rows that stand for unreadable data."""

import csv
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

SCORES = ("aesthetic", "punsafe", "pwatermark")
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("negative", pa.string()),
        *((score, pa.float32()) for score in SCORES),
        ("problem", pa.dictionary(pa.int32(), pa.string())),
    ]
)
COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "text": ("prompt", "text", "caption", "top_caption"),
        "negative": ("negative_prompt",),
        "aesthetic": ("aesthetic_score", "aesthetic", "prediction", "aesthetic_score_laion_v2", "aesthetics_score"),
        "punsafe": ("punsafe",),
        "pwatermark": ("pwatermark",),
    }
)
"""Common column names in lower case, by the field of `SCHEMA` that they hold."""

MAX_PROMPT_BYTES = 100_000  # twenty times the longest that anyone typed
MAX_RECORD_BYTES = 2**24  # one JSON value or CSV field
BUFFER = 2**18
TOO_LONG = f"prompt of more than {MAX_PROMPT_BYTES} bytes"
_STORE_FAILED = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)
UNREADABLE = (
    OSError, EOFError, UnicodeError, zlib.error, lzma.LZMAError, tarfile.TarError, csv.Error, pa.ArrowException
)  # fmt: skip


@dataclass(frozen=True)
class PromptFile:
    """A file of prompts. `column` is the column of prompts, with dots into nested objects; empty: found by its name."""

    filesystem: fs.FileSystem
    path: str
    column: str = ""

    def open_stream(self) -> BinaryIO:
        """Open the file."""
        opened: BinaryIO = io.BufferedReader(self.filesystem.open_input_stream(self.path, compression=None), BUFFER)
        return opened


def table_from_columns(columns: dict[str, Any], count: int) -> pa.Table:
    """Return a table of `SCHEMA`; missing columns are null."""
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count) for field in SCHEMA]
    return pa.table(arrays, names=SCHEMA.names).cast(SCHEMA)


def table_from_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return a table of rows; a lone surrogate or an overlong prompt is a problem."""
    columns: dict[str, Any] = {field.name: [row.get(field.name) for row in rows] for field in SCHEMA}
    for number, (text, negative) in enumerate(zip(columns["text"], columns["negative"], strict=True)):
        if problem := _find_problem(text, negative):
            columns["text"][number] = columns["negative"][number] = None
            columns["problem"][number] = problem
    return table_from_columns(
        {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}, len(rows)
    )


def _find_problem(text: str | None, negative: str | None) -> str | None:
    try:
        size = len((text or "").encode())
        (negative or "").encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    return TOO_LONG if size > MAX_PROMPT_BYTES else None


def rows_to_tables(items: Iterable[Mapping[str, Any] | pa.Table], batch_size: int) -> Iterator[pa.Table]:
    """Combine single rows into tables of `batch_size` rows; yield tables among them unchanged, in order.

    Rows before an error are yielded before it is raised.
    """
    pending: list[Mapping[str, Any]] = []
    try:
        for item in items:
            is_table = isinstance(item, pa.Table)
            if not is_table:
                pending.append(item)
            if pending and (is_table or len(pending) == batch_size):
                yield table_from_rows(pending)
                pending = []
            if is_table:
                yield item
    except UNREADABLE:
        if pending:
            yield table_from_rows(pending)
        raise
    if pending:
        yield table_from_rows(pending)


def row_from_object(value: Any, column: str) -> dict[str, Any]:
    """Return the row of a JSON object."""
    if not isinstance(value, dict):
        return {"problem": "not an object"}
    values = {name.lower(): item for name, item in value.items()}
    row: dict[str, Any] = {}
    for target, names in COLUMNS.items():
        row[target] = next((values[name] for name in names if name in values), None)
    row["text"] = get_nested_value(value, column) if column else row["text"]
    if not isinstance(row["text"], str):
        return {"problem": "no prompt" if row["text"] is None else "the prompt is not a string"}
    row["negative"] = row["negative"] if isinstance(row["negative"], str) else None
    for score in SCORES:
        row[score] = to_float(row[score]) if isinstance(row[score], int | float) else None
    return row


def row_from_json(value: Any, column: str) -> dict[str, Any]:
    """Return the row of a JSON value; a string is a prompt unless a column is chosen."""
    return {"text": value} if isinstance(value, str) and not column else row_from_object(value, column)


def get_nested_value(value: Any, column: str) -> Any:
    """Return a nested value by a column name with dots; a key that contains dots comes first."""
    if isinstance(value, dict) and column in value:
        return value[column]
    name, _, rest = column.partition(".")
    return get_nested_value(value.get(name), rest) if rest and isinstance(value, dict) else None


def to_float(value: Any) -> float | None:
    """Return a number, or None."""
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)
    return None


def build_problem_rows(count: int, problem: str, batch_size: int) -> Iterator[pa.Table]:
    """Yield tables of at most `batch_size` rows that hold a problem."""
    for first in range(0, count, batch_size):
        size = min(batch_size, count - first)
        yield table_from_columns({"problem": pa.array([problem] * size)}, size)


def describe_error(error: BaseException) -> str:
    """Return one line about wrong data; an error of the store is raised again."""
    if isinstance(error, _STORE_FAILED) or "AWS Error" in str(error):
        raise error
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
