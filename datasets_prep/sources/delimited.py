"""Tables as text with a header: fields between commas, tabs, semicolons or bars, which may be quoted."""

import csv
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.columns import columns_of, no_column
from datasets_prep.sources.lines import lines
from datasets_prep.sources.rows import MOST_BYTES, MOST_RECORD, SCORES, in_tables, number_of, refused

DELIMITERS = ",\t;|"
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*$", re.IGNORECASE)  # as Excel writes it
_QUOTED = re.compile(r'"((?:[^"]|"")*)"\s*')
_TOO_LONG = f"line of more than {MOST_RECORD} bytes"
csv.field_size_limit(max(csv.field_size_limit(), MOST_RECORD))


def read_csv(stream: BinaryIO, rows: int, column: str) -> Iterator[pa.Table]:
    """Read comma-, tab- or semicolon-separated values."""
    text = _Lines(stream)
    line = next((each for each in text if each.strip()), "")
    if found := _SEPARATOR_LINE.match(line):
        delimiter, line = found[1], next(text, "")
    else:
        delimiter = delimiter_of(line)
    header = [name.strip() for name in next(csv.reader([line], delimiter=delimiter or ","), [])]
    names = columns_of(header, column)
    if "text" not in names:
        yield from refused(1, no_column(column, header), rows)
    elif delimiter:
        places = {target: header.index(name) for target, name in names.items()}
        yield from in_tables(_records(text, delimiter, places, len(header)), rows)
    else:
        yield from in_tables(_texts(text), rows)


def delimiter_of(header: str) -> str:
    """Return the most frequent delimiter; empty if the file has one column."""
    plain = _QUOTED.sub("", header)
    best = max(DELIMITERS, key=plain.count)
    return best if best in plain else ""


class _Lines:
    """Lines as text, with their ends; what is no UTF-8 as lone surrogates. `ended` once there was none."""

    def __init__(self, stream: BinaryIO) -> None:
        self.lines, self.ended, self.begun = lines(stream, MOST_RECORD), False, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        try:
            line = next(self.lines)
        except StopIteration:
            self.ended = True
            raise
        self.begun += 1
        if line is None:
            raise csv.Error(_TOO_LONG)
        return line.decode("utf-8", "surrogateescape")


def _records(text: _Lines, delimiter: str, places: dict[str, int], width: int) -> Iterator[dict[str, Any]]:
    reader = csv.reader(text, delimiter=delimiter)
    while True:
        text.begun = 0
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield {"problem": str(error)}
            continue
        if text.ended and text.begun:
            yield {"problem": f"a quote that is not closed, in a row of {text.begun} lines"}
        elif fields:
            yield _record(fields, places, width)


def _record(fields: list[str], places: dict[str, int], width: int) -> dict[str, Any]:
    if len(fields) != width:
        return {"problem": f"{len(fields)} fields where {width} were expected"}
    row: dict[str, Any] = {target: fields[place] for target, place in places.items()}
    return row | {score: number_of(row[score]) for score in SCORES if score in row}


def _texts(text: _Lines) -> Iterator[dict[str, Any]]:
    """Yield the texts of one column: a quoted text over several lines, or a line as it is, with its commas."""
    held: list[str] = []
    while True:
        try:
            line = held.pop(0) if held else next(text, None)
        except csv.Error as error:
            yield {"problem": str(error)}
            continue
        if line is None:
            return
        if line.startswith('"'):
            line, held = _whole(line, held, text)
        found = _QUOTED.fullmatch(line)
        yield {"text": found[1].replace('""', '"') if found else line.strip()}


def _whole(line: str, held: list[str], text: _Lines) -> tuple[str, list[str]]:
    """Return a quoted text with the lines that continue it, and the rest of `held`.

    The line alone where its quote is not closed within a prompt's length.
    """
    taken, size, quotes = [line], len(line), line.count('"')
    while quotes % 2 and size <= MOST_BYTES:
        more = held.pop(0) if held else next(text, None)
        if more is None:
            break
        taken.append(more)
        size, quotes = size + len(more), quotes + more.count('"')
    whole = "".join(taken)
    return (whole, held) if _QUOTED.fullmatch(whole) else (line, taken[1:] + held)
