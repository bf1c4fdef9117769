"""JSON documents other than JSON lines: lists of objects or texts, alone or within an object, on any number of lines.

A document is parsed as a stream; memory holds one element of a list.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.raw_prompt_schema import (
    COLUMNS,
    MAX_RECORD_BYTES,
    row_from_json,
    row_from_object,
    rows_to_tables,
)

CHUNK = 2**18
LOOKAHEAD = 2**8  # characters
_TEXTS = frozenset([*COLUMNS["text"], *(f"{name}s" for name in COLUMNS["text"])])
_INDEXED = re.compile(r'\{\s*"\d+"\s*:')  # a column of pandas' `to_json`: an object of values by their index
_SPACE = " \t\r\n"
_decoder = json.JSONDecoder()


def read_json_document(stream: BinaryIO, batch_size: int, column: str) -> Iterator[pa.Table]:
    """Read a JSON document; if a value cannot be parsed, the last row says so and the rest is lost."""
    yield from rows_to_tables(_parse_rows(_JsonParser(stream), column), batch_size)


class _JsonParser:
    """A pull parser of JSON values.

    Attributes:
        stream: the JSON text as bytes.
        text: the text that is read and not yet dropped.
        offset: the offset in `text` of the next character.
        ended: whether the stream is read to its end.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.offset, self.ended = "", 0, False

    def _read_more(self) -> bool:
        """Double the buffered text; return False at the end of the stream or above the size limit."""
        if self.ended or len(self.text) - self.offset > MAX_RECORD_BYTES:
            return False
        part = self.stream.read(max(CHUNK, len(self.text) - self.offset))
        self.ended = not part
        self.text, self.offset = self.text[self.offset :] + self.decoder.decode(part, final=self.ended), 0
        return not self.ended

    def peek(self) -> str:
        """Return the next character that is no space, without consuming it; empty at the end."""
        while True:
            while self.offset < len(self.text) and self.text[self.offset] in _SPACE:
                self.offset += 1
            if self.offset < len(self.text) or not self._read_more():
                return self.text[self.offset : self.offset + 1]

    def consume(self, character: str) -> bool:
        """Consume a character if it is the next one, and tell whether it was."""
        is_next = self.peek() == character
        self.offset += is_next
        return is_next

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Tell whether the next `LOOKAHEAD` characters match a pattern."""
        self.peek()
        while len(self.text) - self.offset < LOOKAHEAD and self._read_more():
            pass
        return bool(pattern.match(self.text, self.offset))

    def parse_value(self) -> Any:
        """Parse a value; raise a ValueError if there is none or it is too long."""
        self.peek()
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.offset)
            except RecursionError:
                raise ValueError("nested too deep") from None
            except json.JSONDecodeError as error:
                if not self._read_more():
                    raise ValueError(error.msg) from None
                continue
            if end == len(self.text) and self._read_more():  # a number may go on
                continue
            self.offset = end
            return value

    def iter_elements(self) -> Iterator[Any]:
        """Yield a list's elements, each parsed on demand."""
        self.offset += 1
        while not self.consume("]"):
            yield self.parse_value()
            if self.consume(","):
                continue
            if self.peek() != "]":
                raise ValueError("expected , or ] after an element")

    def iter_keys(self) -> Iterator[str]:
        """Yield the keys of an object; the caller consumes their values."""
        self.offset += 1
        while not self.consume("}"):
            key = self.parse_value()
            if not isinstance(key, str) or not self.consume(":"):
                raise ValueError("expected a key and : in an object")
            yield key
            if self.consume(","):
                continue
            if self.peek() != "}":
                raise ValueError("expected , or } after a value")


def _parse_rows(values: _JsonParser, column: str) -> Iterator[dict[str, Any]]:
    try:
        while first := values.peek():
            if first == "[":
                yield from _append_problem_if_empty(
                    (row_from_json(item, column) for item in values.iter_elements()), "an empty list"
                )
            elif first == "{":
                yield from _parse_object(values, column)
            else:
                yield row_from_json(values.parse_value(), column)
    except ValueError as error:
        yield {"problem": f"file: not JSON from here on: {error}"}


def _append_problem_if_empty(rows: Iterator[dict[str, Any]], problem: str) -> Iterator[dict[str, Any]]:
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        yield {"problem": f"file: {problem}"}


def _parse_object(values: _JsonParser, column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an object's lists of prompts, or of its objects if all values are; else one row."""
    fields: dict[str, Any] = {}
    has_rows = False
    for key in values.iter_keys():
        if values.peek() == "[" and "problem" in row_from_object(fields, column):
            for row in _parse_list(values, key, column.removeprefix(f"{key}.")):
                has_rows = True
                yield row
            fields[key] = None
            continue
        if (key == column if column else key.lower() in _TEXTS) and not has_rows and values.matches(_INDEXED):
            for _ in values.iter_keys():
                has_rows = True
                yield row_from_object({"prompt": values.parse_value()}, "")
            fields[key] = None
            continue
        value = values.parse_value()
        if (has_rows or not fields) and isinstance(value, dict) and "problem" not in row_from_object(value, column):
            has_rows = True
            yield row_from_object(value, column)
        fields[key] = value if not isinstance(value, dict | list) or column.startswith(f"{key}.") else None
    if not has_rows:
        row = row_from_object(fields, column)
        yield {"problem": f"{row['problem']}; it has {', '.join(fields)[:200]}"} if "problem" in row else row


def _parse_list(values: _JsonParser, key: str, column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a list, or nothing if its first element is no prompt: it may be a list of images."""
    is_of_prompts = None
    for item in values.iter_elements():
        if is_of_prompts is None:
            is_of_prompts = (
                key in (_TEXTS if not column else (column,)) if isinstance(item, str) else _is_prompt(item, column)
            )
        if is_of_prompts:
            yield {"text": item} if isinstance(item, str) else row_from_object(item, column)


def _is_prompt(item: Any, column: str) -> bool:
    return "problem" not in row_from_object(item, column)
