"""JSON that is not an object a line: lists of objects or of texts, alone or within an object, on any number of lines.

It is parsed as it streams: what is held is one element of a list.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from datasets_prep.sources.rows import COLUMNS, MOST_RECORD, in_tables, row_of, row_or_text

CHUNK = 2**18
AHEAD = 2**8  # characters that are looked at before they are parsed
_TEXTS = frozenset([*COLUMNS["text"], *(f"{name}s" for name in COLUMNS["text"])])
_INDEXED = re.compile(r'\{\s*"\d+"\s*:')  # a column of pandas' `to_json`: an object of values by their index
_SPACE = " \t\r\n"
_decoder = json.JSONDecoder()


def read_json_document(stream: BinaryIO, rows: int, column: str) -> Iterator[pa.Table]:
    """Read a JSON document; after a value that cannot be parsed, the last row tells from where it is lost."""
    yield from in_tables(_rows(_Values(stream), column), rows)


class _Values:
    """The values of a stream of JSON, one after another."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.ended = "", 0, False

    def _more(self) -> bool:
        """Whether there was more; of what is long the more is read at a time, as it is parsed anew."""
        if self.ended or len(self.text) - self.at > MOST_RECORD:
            return False
        part = self.stream.read(max(CHUNK, len(self.text) - self.at))
        self.ended = not part
        self.text, self.at = self.text[self.at :] + self.decoder.decode(part, final=self.ended), 0
        return not self.ended

    def next(self) -> str:
        """Return the next character that is no space, without consuming it; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def takes(self, character: str) -> bool:
        """Whether it is the next; then it is taken."""
        found = self.next() == character
        self.at += found
        return found

    def matches(self, pattern: re.Pattern[str]) -> bool:
        """Whether what comes next does, of which a few characters must tell."""
        self.next()
        while len(self.text) - self.at < AHEAD and self._more():
            pass
        return bool(pattern.match(self.text, self.at))

    def value(self) -> Any:
        """Parse a value; raise ValueError if there is none or it is too long."""
        self.next()
        while True:
            try:
                value, end = _decoder.raw_decode(self.text, self.at)
            except RecursionError:
                raise ValueError("nested too deep") from None
            except json.JSONDecodeError as error:
                if not self._more():
                    raise ValueError(error.msg) from None
                continue
            if end == len(self.text) and self._more():  # a number may go on
                continue
            self.at = end
            return value

    def elements(self) -> Iterator[Any]:
        """Yield a list's elements, each parsed on demand."""
        self.at += 1
        while not self.takes("]"):
            yield self.value()
            if self.takes(","):
                continue
            if self.next() != "]":
                raise ValueError("expected , or ] after an element")

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the caller consumes their values."""
        self.at += 1
        while not self.takes("}"):
            key = self.value()
            if not isinstance(key, str) or not self.takes(":"):
                raise ValueError("expected a key and : in an object")
            yield key
            if self.takes(","):
                continue
            if self.next() != "}":
                raise ValueError("expected , or } after a value")


def _rows(values: _Values, column: str) -> Iterator[dict[str, Any]]:
    try:
        while first := values.next():
            if first == "[":
                yield from _or_none((row_or_text(item, column) for item in values.elements()), "an empty list")
            elif first == "{":
                yield from _of_object(values, column)
            else:
                yield row_or_text(values.value(), column)
    except ValueError as error:
        yield {"problem": f"file: not JSON from here on: {error}"}


def _or_none(rows: Iterator[dict[str, Any]], what: str) -> Iterator[dict[str, Any]]:
    none = True
    for row in rows:
        none = False
        yield row
    if none:
        yield {"problem": f"file: {what}"}


def _of_object(values: _Values, column: str) -> Iterator[dict[str, Any]]:
    """Yield an object's lists of prompts, or its objects if all values are; else the object as one row."""
    own: dict[str, Any] = {}
    found = False
    for key in values.members():
        if values.next() == "[" and "problem" in row_of(own, column):
            for row in _of_list(values, key, column.removeprefix(f"{key}.")):
                found = True
                yield row
            own[key] = None
            continue
        if (key == column if column else key.lower() in _TEXTS) and not found and values.matches(_INDEXED):
            for _ in values.members():
                found = True
                yield row_of({"prompt": values.value()}, "")
            own[key] = None
            continue
        value = values.value()
        if (found or not own) and isinstance(value, dict) and "problem" not in row_of(value, column):
            found = True
            yield row_of(value, column)
        own[key] = value if not isinstance(value, dict | list) or column.startswith(f"{key}.") else None
    if not found:
        row = row_of(own, column)
        yield {"problem": f"{row['problem']}; it has {', '.join(own)[:200]}"} if "problem" in row else row


def _of_list(values: _Values, key: str, column: str) -> Iterator[dict[str, Any]]:
    """Nothing where its first element is no prompt: the list is of something else, such as images."""
    wanted = None
    for item in values.elements():
        if wanted is None:
            wanted = key in (_TEXTS if not column else (column,)) if isinstance(item, str) else _is_prompt(item, column)
        if wanted:
            yield {"text": item} if isinstance(item, str) else row_of(item, column)


def _is_prompt(item: Any, column: str) -> bool:
    return "problem" not in row_of(item, column)
