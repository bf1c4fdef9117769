"""CSV: a header, then fields separated by commas, tabs, semicolons or bars, which may be quoted."""

import csv
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.column_detection import describe_missing_column, find_columns
from datasets_prep.sources.raw_prompt_schema import (
    MAX_PROMPT_BYTES,
    MAX_RECORD_BYTES,
    SCORES,
    build_problem_rows,
    rows_to_tables,
    to_float,
)
from datasets_prep.sources.text_lines import iter_lines

DELIMITERS = ",\t;|"
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*$", re.IGNORECASE)  # a line that Excel writes
_QUOTED = re.compile(r'"((?:[^"]|"")*)"\s*')
_TOO_LONG = f"line of more than {MAX_RECORD_BYTES} bytes"
csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_BYTES))


def read_csv(stream: BinaryIO, batch_size: int, column: str) -> Iterator[pa.Table]:
    """Read comma-, tab- or semicolon-separated values."""
    text = _LineReader(stream)
    first_line = next((line for line in text if line.strip()), "")
    if separator := _SEPARATOR_LINE.match(first_line):
        delimiter, first_line = separator[1], next(text, "")
    else:
        delimiter = guess_delimiter(first_line)
    header = [name.strip() for name in next(csv.reader([first_line], delimiter=delimiter or ","), [])]
    names = find_columns(header, column)
    if "text" not in names:
        yield from build_problem_rows(1, describe_missing_column(column, header), batch_size)
    elif delimiter:
        indices = {target: header.index(name) for target, name in names.items()}
        yield from rows_to_tables(_parse_records(text, delimiter, indices, len(header)), batch_size)
    else:
        yield from rows_to_tables(_parse_texts(text), batch_size)


def guess_delimiter(header: str) -> str:
    """Return the most frequent delimiter; empty if the file has one column."""
    plain = _QUOTED.sub("", header)
    best = max(DELIMITERS, key=plain.count)
    return best if best in plain else ""


class _LineReader:
    """An iterator of lines as text, with their ends; invalid UTF-8 becomes lone surrogates.

    Attributes:
        lines: the lines as bytes.
        ended: whether all lines were read.
        lines_in_row: number of lines read since the counter was reset, which is at the start of each row.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.lines, self.ended, self.lines_in_row = iter_lines(stream, MAX_RECORD_BYTES), False, 0

    def __iter__(self) -> "_LineReader":
        return self

    def __next__(self) -> str:
        try:
            line = next(self.lines)
        except StopIteration:
            self.ended = True
            raise
        self.lines_in_row += 1
        if line is None:
            raise csv.Error(_TOO_LONG)
        return line.decode("utf-8", "surrogateescape")


def _parse_records(text: _LineReader, delimiter: str, indices: dict[str, int], width: int) -> Iterator[dict[str, Any]]:
    reader = csv.reader(text, delimiter=delimiter)
    while True:
        text.lines_in_row = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield {"problem": str(error)}
            continue
        if text.ended and text.lines_in_row:
            yield {"problem": f"a quote is not closed; the row spans {text.lines_in_row} lines"}
        elif fields:
            yield _parse_record(fields, indices, width)


def _parse_record(fields: list[str], indices: dict[str, int], width: int) -> dict[str, Any]:
    if len(fields) != width:
        return {"problem": f"{len(fields)} fields; expected {width}"}
    row: dict[str, Any] = {target: fields[index] for target, index in indices.items()}
    return row | {score: to_float(row[score]) for score in SCORES if score in row}


def _parse_texts(text: _LineReader) -> Iterator[dict[str, Any]]:
    """Yield the texts of a file of one column: a quoted text over several lines, or an unquoted line."""
    pending: list[str] = []
    while True:
        try:
            line = pending.pop(0) if pending else next(text, None)
        except csv.Error as error:
            yield {"problem": str(error)}
            continue
        if line is None:
            return
        if line.startswith('"'):
            line, pending = _read_quoted_text(line, pending, text)
        quoted = _QUOTED.fullmatch(line)
        yield {"text": quoted[1].replace('""', '"') if quoted else line.strip()}


def _read_quoted_text(line: str, pending: list[str], text: _LineReader) -> tuple[str, list[str]]:
    """Return a quoted text with the lines that continue it, and the lines that remain.

    If the quote is not closed within the length of a prompt, return the first line alone.
    """
    parts, size, quotes = [line], len(line), line.count('"')
    while quotes % 2 and size <= MAX_PROMPT_BYTES:
        more = pending.pop(0) if pending else next(text, None)
        if more is None:
            break
        parts.append(more)
        size, quotes = size + len(more), quotes + more.count('"')
    text_with_lines = "".join(parts)
    return (text_with_lines, pending) if _QUOTED.fullmatch(text_with_lines) else (line, parts[1:] + pending)
