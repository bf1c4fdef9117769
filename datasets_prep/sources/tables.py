"""Tables: Parquet, CSV, and the Arrow shards of a Hugging Face dataset."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from datasets_prep.sources.rows import (
    COLUMNS,
    MOST_BYTES,
    SCHEMA,
    SCORES,
    UNREADABLE,
    File,
    problem_of,
    refused,
    table_of,
)

ROWS_A_BYTE = 1000  # at most: a column of one value again and again takes almost nothing


def read_parquet(file: File, rows: int) -> Iterator[pa.Table]:
    """A row group that cannot be read is refused with all its rows; the others are not."""
    with file.filesystem.open_input_file(file.path) as opened, pq.ParquetFile(opened) as parquet:
        names = _names(parquet.schema_arrow.names, file.column)
        if "text" not in names:
            count = _believed(parquet.metadata.num_rows, opened.size())
            yield from refused(count, _no_column(file, parquet.schema_arrow.names), rows)
            return
        for group in range(parquet.num_row_groups):
            left = _believed(parquet.metadata.row_group(group).num_rows, opened.size())
            try:
                for batch in parquet.iter_batches(rows, [group], list(names.values())):
                    yield _of_columns(pa.Table.from_batches([batch]), names)
                    left -= batch.num_rows
            except UNREADABLE as error:
                yield from refused(left, f"row group {group}: {problem_of(error)}", rows)


def _believed(rows: int, size: int) -> int:
    """What a footer says, unless a file of so many bytes cannot have so many rows: a damaged one may say anything."""
    return rows if 0 < rows <= ROWS_A_BYTE * size else 1


def read_csv(file: File, rows: int) -> Iterator[pa.Table]:
    bad: list[str] = []

    def refuse(row: Any) -> str:
        bad.append(f"{row.actual_columns} fields where {row.expected_columns} were expected")
        return "skip"

    separator = "\t" if file.path.lower().endswith(".tsv") else ","
    parse = pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse)
    with file.filesystem.open_input_stream(file.path) as head:
        header = pyarrow.csv.open_csv(head, parse_options=parse).schema.names
    names = _names(header, file.column)
    if "text" not in names:
        yield from refused(1, _no_column(file, header), rows)
        return
    bad.clear()
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(names.values()),
        column_types=dict.fromkeys(names.values(), pa.binary()),
    )
    with file.filesystem.open_input_stream(file.path) as stream:
        for batch in pyarrow.csv.open_csv(stream, parse_options=parse, convert_options=convert):
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, rows):
                yield _of_columns(table.slice(first, rows), names)
            for problem in bad:
                yield from refused(1, problem, rows)
            bad.clear()


def read_arrow(file: File, rows: int) -> Iterator[pa.Table]:
    """A shard of a Hugging Face dataset as `save_to_disk` leaves it: Arrow's stream format."""
    with file.filesystem.open_input_file(file.path) as stream, pa.ipc.open_stream(stream) as batches:
        names = _names(batches.schema.names, file.column)
        if "text" not in names:
            yield from refused(1, _no_column(file, batches.schema.names), rows)
            return
        for batch in batches:
            batch.validate(full=True)  # Arrow trusts a stream's offsets, and reads outside of it where they are wrong
            table = pa.Table.from_batches([batch])
            for first in range(0, table.num_rows, rows):
                yield _of_columns(table.slice(first, rows), names)
        if stream.tell() < stream.size():
            yield from refused(1, "file: data after the end of its stream", rows)


def _names(columns: list[str], chosen: str) -> dict[str, str]:
    """What a file's columns are called, by what they hold."""
    by_lower = {name.lower(): name for name in reversed(columns)}
    found = {
        target: by_lower[name] for target, names in COLUMNS.items() for name in reversed(names) if name in by_lower
    }
    if chosen:
        found.pop("text", None)
        if chosen in columns:
            found["text"] = chosen
    return found


def _no_column(file: File, names: list[str]) -> str:
    wanted = repr(file.column) if file.column else " or ".join(COLUMNS["text"])
    return f"file: no column {wanted}; it has {', '.join(names)[:200]}"


def _of_columns(table: pa.Table, names: dict[str, str]) -> pa.Table:
    columns: dict[str, Any] = {}
    for target, name in names.items():
        values = table[name].combine_chunks()
        if target in SCORES:
            columns[target] = _numbers(values)
        else:
            columns[target] = _texts(values)
    text = columns["text"].to_pylist()
    problems = [_problem(value, raw) for value, raw in zip(text, table[names["text"]], strict=True)]
    columns["text"] = pa.array([None if bad else value for value, bad in zip(text, problems, strict=True)], pa.string())
    return table_of({**columns, "problem": pa.array(problems, SCHEMA.field("problem").type)}, table.num_rows)


def _problem(text: str | None, raw: Any) -> str | None:
    if text is None:
        return "not UTF-8" if raw.is_valid and not pa.types.is_nested(raw.type) else "no prompt"
    return f"prompt of more than {MOST_BYTES} bytes" if len(text) > MOST_BYTES else None


def _numbers(values: pa.Array) -> pa.Array:
    """Null where there is no number."""
    with suppress(pa.ArrowException):
        return values.cast(pa.float32())
    return pa.array([_number(value.as_py()) for value in values], pa.float32())


def _number(value: Any) -> float | None:
    with suppress(TypeError, ValueError):
        return float(value)
    return None


def _texts(values: pa.Array) -> pa.Array:
    """As strings; null where the bytes are no UTF-8."""
    try:
        strings = values.cast(pa.string())
        strings.validate(full=True)
    except pa.ArrowException:
        return pa.array([_decoded(value) for value in values.cast(pa.binary())], pa.string())
    return strings


def _decoded(value: Any) -> str | None:
    with suppress(UnicodeDecodeError):
        return value.as_py().decode() if value.is_valid else None
    return None
