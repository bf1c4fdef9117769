"""Text, a prompt a line, and JSON, an object or a text a line."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.rows import MOST_BYTES, in_tables, row_or_text

MOST_JSON_BYTES = 16 * MOST_BYTES  # of a line: an object may hold more than its prompt


def read_text(stream: BinaryIO, rows: int) -> Iterator[pa.Table]:
    """Read one prompt per line; a blank line is a row without text."""
    yield from in_tables(map(_text_row, lines(stream, MOST_BYTES)), rows)


def read_json_lines(stream: BinaryIO, rows: int, column: str) -> Iterator[pa.Table]:
    """Blank lines are no rows."""
    whole = (line for line in lines(stream, MOST_JSON_BYTES) if line is None or line.strip())
    yield from in_tables((_json_row(line, column) for line in whole), rows)


def lines(stream: BinaryIO, most: int) -> Iterator[bytes | None]:
    """Lines with their ends; None is one that is longer than `most` bytes."""
    begins = True
    while part := stream.readline(most):
        ends = part.endswith(b"\n") or len(part) < most
        if begins:
            yield part if ends else None
        begins = ends


def _text_row(line: bytes | None) -> dict[str, Any]:
    if line is None:
        return {"problem": f"line of more than {MOST_BYTES} bytes"}
    try:
        return {"text": line.decode("utf-8-sig").strip()}
    except UnicodeDecodeError:
        return {"problem": "not UTF-8"}


def _json_row(line: bytes | None, column: str) -> dict[str, Any]:
    if line is None:
        return {"problem": f"line of more than {MOST_JSON_BYTES} bytes"}
    try:
        return row_or_text(json.loads(line.decode("utf-8-sig")), column)
    except UnicodeDecodeError:
        return {"problem": "not UTF-8"}
    except (ValueError, RecursionError):
        return {"problem": "not JSON"}
