"""Text with one prompt per line, and JSON lines."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.raw_prompt_schema import MAX_PROMPT_BYTES, row_from_json, rows_to_tables

MAX_JSON_BYTES = 16 * MAX_PROMPT_BYTES  # per line: an object may have more than its prompt


def read_text(stream: BinaryIO, batch_size: int) -> Iterator[pa.Table]:
    """Read one prompt per line; a blank line is a row without text."""
    yield from rows_to_tables(map(_parse_text_line, iter_lines(stream, MAX_PROMPT_BYTES)), batch_size)


def read_json_lines(stream: BinaryIO, batch_size: int, column: str) -> Iterator[pa.Table]:
    """Read one object or text per line; blank lines are skipped."""
    present = (line for line in iter_lines(stream, MAX_JSON_BYTES) if line is None or line.strip())
    yield from rows_to_tables((_parse_json_line(line, column) for line in present), batch_size)


def iter_lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Yield lines with their ends, and None for a line of more than `max_bytes`."""
    is_start = True
    while part := stream.readline(max_bytes):
        is_end = part.endswith(b"\n") or len(part) < max_bytes
        if is_start:
            yield part if is_end else None
        is_start = is_end


def _parse_text_line(line: bytes | None) -> dict[str, Any]:
    if line is None:
        return {"problem": f"line of more than {MAX_PROMPT_BYTES} bytes"}
    try:
        return {"text": line.decode("utf-8-sig").strip()}
    except UnicodeDecodeError:
        return {"problem": "not UTF-8"}


def _parse_json_line(line: bytes | None, column: str) -> dict[str, Any]:
    if line is None:
        return {"problem": f"line of more than {MAX_JSON_BYTES} bytes"}
    try:
        return row_from_json(json.loads(line.decode("utf-8-sig")), column)
    except UnicodeDecodeError:
        return {"problem": "not UTF-8"}
    except (ValueError, RecursionError):
        return {"problem": "not JSON"}
