"""Text, a prompt a line, and JSON, an object a line; plain, compressed or in an archive."""

import gzip
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from datasets_prep.sources.rows import COLUMNS, MOST_BYTES, SCHEMA, SCORES, UNREADABLE, File, table_of


def read_text(file: File, rows: int) -> Iterator[pa.Table]:
    yield from _from_lines(file.stream(), rows, lambda line: {"text": line.strip()})


def read_jsonl(file: File, rows: int) -> Iterator[pa.Table]:
    yield from _from_lines(file.stream(), rows, _parser(file.column))


def read_gzip(file: File, rows: int) -> Iterator[pa.Table]:
    make = _parser(file.column) if ".json" in file.path.lower() else (lambda line: {"text": line.strip()})
    with gzip.open(file.stream()) as stream:
        yield from _from_lines(stream, rows, make)


def read_tar(file: File, rows: int) -> Iterator[pa.Table]:
    """Its members that are JSON lines, one after another, without unpacking it."""
    with tarfile.open(fileobj=file.stream(), mode="r|*") as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.name.endswith((".jsonl", ".json")) else None
            if stream is not None:
                yield from _from_lines(stream, rows, _parser(file.column))


def _from_lines(stream: Any, rows: int, make: Callable[[str], dict[str, Any]]) -> Iterator[pa.Table]:
    """A truncated stream gives the lines before it ends."""
    found: list[dict[str, Any]] = []
    try:
        for line in _lines(stream):
            found.append(_row(line, make))
            if len(found) == rows:
                yield _of_rows(found)
                found = []
    except UNREADABLE:
        yield _of_rows(found)
        raise
    if found:
        yield _of_rows(found)


def _lines(stream: Any) -> Iterator[bytes | None]:
    """Without those that are blank; None is one that is too long."""
    whole = True
    while part := stream.readline(MOST_BYTES):
        begins, whole = whole, part.endswith(b"\n") or len(part) < MOST_BYTES
        if begins and whole:
            if part.strip():
                yield part
        elif begins:
            yield None


def _row(line: bytes | None, make: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    if line is None:
        return {"problem": f"line of more than {MOST_BYTES} bytes"}
    try:
        return make(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return {"problem": "not UTF-8"}
    except (ValueError, RecursionError):
        return {"problem": "not JSON"}


def _parser(column: str) -> Callable[[str], dict[str, Any]]:
    def parse(line: str) -> dict[str, Any]:
        value = json.loads(line)
        if not isinstance(value, dict):
            return {"problem": "not an object"}
        own = {name.lower(): item for name, item in value.items()}
        row: dict[str, Any] = {}
        for target, names in COLUMNS.items():
            row[target] = next((own[name] for name in names if name in own), None)
        row["text"] = _inner(value, column) if column else row["text"]
        if not isinstance(row["text"], str):
            return {"problem": "no prompt" if row["text"] is None else "the prompt is no text"}
        row["negative"] = row["negative"] if isinstance(row["negative"], str) else None
        for score in SCORES:
            row[score] = float(row[score]) if isinstance(row[score], int | float) else None
        return row

    return parse


def _inner(value: Any, column: str) -> Any:
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _of_rows(rows: list[dict[str, Any]]) -> pa.Table:
    """A lone surrogate, which JSON may hold, is no text that can be stored."""
    columns: dict[str, Any] = {field.name: [row.get(field.name) for row in rows] for field in SCHEMA}
    for number, text in enumerate(columns["text"]):
        try:
            (text or "").encode(), (columns["negative"][number] or "").encode()
        except UnicodeEncodeError:
            columns["text"][number] = columns["negative"][number] = None
            columns["problem"][number] = "not UTF-8"
    return table_of({name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}, len(rows))
