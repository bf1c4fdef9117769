"""Columnar formats: Parquet, and Arrow streams and files, such as the shards of a Hugging Face dataset."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets_prep.sources.column_detection import describe_missing_column, find_columns
from datasets_prep.sources.raw_prompt_schema import (
    MAX_PROMPT_BYTES,
    SCHEMA,
    SCORES,
    TOO_LONG,
    UNREADABLE,
    build_problem_rows,
    describe_error,
    table_from_columns,
    to_float,
)

MAX_ROWS_PER_BYTE = 1000  # a column of one repeated value takes almost no space
_ARROW_FILE = b"ARROW1\0\0"  # magic bytes before an Arrow stream and its footer


def read_parquet(opened: Any, batch_size: int, column: str) -> Iterator[pa.Table]:
    """Read a seekable Parquet file; each row of an unreadable row group becomes a row that only states the problem."""
    with pq.ParquetFile(opened) as parquet:
        schema, size = parquet.schema_arrow, _get_size(opened)
        names = _find_columns(schema, column)
        if "text" not in names:
            count = _check_row_count(parquet.metadata.num_rows, size)
            yield from build_problem_rows(count, describe_missing_column(column, _list_paths(schema)), batch_size)
            return
        for group in range(parquet.num_row_groups):
            left = _check_row_count(parquet.metadata.row_group(group).num_rows, size)
            try:
                for batch in parquet.iter_batches(batch_size, [group], list(names.values())):
                    yield _convert_table(pa.Table.from_batches([batch]), names)
                    left -= batch.num_rows
            except UNREADABLE as error:
                yield from build_problem_rows(left, f"row group {group}: {describe_error(error)}", batch_size)


def read_parquet_stream(stream: BinaryIO, batch_size: int, column: str) -> Iterator[pa.Table]:
    """Read a Parquet stream through a temporary file, since its footer is read first."""
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        yield from read_parquet(copy, batch_size, column)


def _get_size(opened: Any) -> int:
    position = opened.tell()
    size = int(opened.seek(0, 2))
    opened.seek(position)
    return size


def _check_row_count(rows: int, size: int) -> int:
    """Return a footer's row count, or 1 if a file of this size cannot have that many."""
    return rows if 0 < rows <= MAX_ROWS_PER_BYTE * size else 1


def read_arrow(stream: BinaryIO, batch_size: int, column: str) -> Iterator[pa.Table]:
    """Read Arrow's stream format, which `save_to_disk` writes, or its file format, which is a stream with a footer."""
    is_file = stream.peek(len(_ARROW_FILE)).startswith(_ARROW_FILE)  # type: ignore[attr-defined]
    stream.read(len(_ARROW_FILE) if is_file else 0)
    with pa.ipc.open_stream(stream) as batches:
        names = _find_columns(batches.schema, column)
        if "text" not in names:
            yield from build_problem_rows(1, describe_missing_column(column, _list_paths(batches.schema)), batch_size)
            return
        if not stream.peek(1):  # type: ignore[attr-defined]
            yield from build_problem_rows(1, "file: it ends after its schema", batch_size)
        for batch in _convert_memory_errors(batches):
            batch.validate(full=True)  # Arrow trusts a stream's offsets, and reads outside of it where they are wrong
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, batch_size):
                yield _convert_table(table.slice(first, batch_size), names)
        if not is_file and stream.read(1):
            yield from build_problem_rows(1, "file: it has data after the end of its stream", batch_size)


def _convert_memory_errors(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Raise an error for a batch that is larger than any memory, which a damaged stream may claim."""
    try:
        yield from batches
    except MemoryError:
        raise pa.ArrowInvalid("a batch is larger than memory") from None


def _find_columns(schema: pa.Schema, chosen: str) -> dict[str, str]:
    """Return a table's columns; the chosen one may be a field of a nested column, by its name with dots."""
    names = find_columns(schema.names, chosen)
    if chosen and "text" not in names and chosen in _list_paths(schema):
        names["text"] = chosen
    return names


def _list_paths(schema: pa.Schema) -> list[str]:
    """Return the names of all columns, nested ones with dots."""
    return [path for field in schema for path in _list_paths_below(field, "")]


def _list_paths_below(field: pa.Field, above: str) -> Iterator[str]:
    path = f"{above}{field.name}"
    yield path
    if pa.types.is_struct(field.type):
        for inner in field.type:
            yield from _list_paths_below(inner, f"{path}.")


def _get_column(table: pa.Table, name: str) -> pa.Array:
    """Return a column by its name, or a field of a nested one."""
    first, *rest = [name] if name in table.column_names else name.split(".")
    values = table[first].combine_chunks()
    return pc.struct_field(values, rest) if rest else values


def _convert_table(table: pa.Table, names: dict[str, str]) -> pa.Table:
    columns: dict[str, Any] = {}
    for target, name in names.items():
        values = _get_column(table, name)
        if target in SCORES:
            columns[target] = _to_floats(values)
        else:
            columns[target] = _to_strings(values)
    text = columns["text"].to_pylist()
    problems = _find_problems(text, _get_column(table, names["text"]))
    columns["text"] = pa.array([None if bad else value for value, bad in zip(text, problems, strict=True)], pa.string())
    return table_from_columns({**columns, "problem": pa.array(problems, SCHEMA.field("problem").type)}, table.num_rows)


def _find_problems(texts: list[str | None], raw: pa.Array) -> list[str | None]:
    """Return the problem of each text; `raw` is the column that the texts were converted from."""
    valid_rows = raw.is_valid().to_pylist()
    nested = pa.types.is_nested(raw.type)
    return [
        (TOO_LONG if _is_too_long(text) else None)
        if text is not None
        else ("not UTF-8" if valid and not nested else "no prompt")
        for text, valid in zip(texts, valid_rows, strict=True)
    ]


def _is_too_long(text: str) -> bool:
    return len(text) > MAX_PROMPT_BYTES or (4 * len(text) > MAX_PROMPT_BYTES and len(text.encode()) > MAX_PROMPT_BYTES)


def _to_floats(values: pa.Array) -> pa.Array:
    """Return values as numbers; null where there is none."""
    with suppress(pa.ArrowException):
        return values.cast(pa.float32())
    return pa.array([to_float(value.as_py()) for value in values], pa.float32())


def _to_strings(values: pa.Array) -> pa.Array:
    """Return values as strings; null where bytes are not valid UTF-8."""
    try:
        strings = values.cast(pa.string())
        strings.validate(full=True)
    except pa.ArrowException:
        return pa.array([_decode_or_none(value) for value in values.cast(pa.binary())], pa.string())
    return strings


def _decode_or_none(value: Any) -> str | None:
    with suppress(UnicodeDecodeError):
        return value.as_py().decode() if value.is_valid else None
    return None
