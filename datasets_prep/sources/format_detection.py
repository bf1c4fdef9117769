"""Detection of a stream's format by its first bytes and structure, or by its name if these are ambiguous."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from datasets_prep.sources.delimited import DELIMITERS
from datasets_prep.sources.raw_prompt_schema import COLUMNS, row_from_object
from datasets_prep.sources.stream_decoding import HEAD

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
ENDINGS: Mapping[str, str] = MappingProxyType(
    {
        ".tar.gz": "tar", ".tgz": "tar", ".tar": "tar", ".tbz2": "tar", ".txz": "tar", ".gz": "", ".bz2": "", ".xz": "",
        ".zst": "", ".lz4": "", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet",
        ".csv": "csv", ".tsv": "csv", ".arrow": "arrow", ".feather": "arrow", ".txt": "text",
    }
)  # fmt: skip
"""The format that each name ending implies; empty if the content decides."""

_NO_PROMPTS: Mapping[bytes, str] = MappingProxyType(
    {
        b"PK\x03\x04": "a zip archive; unpack it",
        b"\x93NUMPY": "an array of numpy, which may hold a pickle",
        b"version https://git-lfs": "a pointer of Git LFS in place of the file; run `git lfs pull`",
        b"SQLite format 3\0": "an SQLite database; export the table as CSV",
        b"\x7fELF": "a program",
        b"%PDF-": "a PDF",
    }
)
_MEDIA = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8[79]a|RIFF.{4}(?:WAVE|WEBP|AVI )|\0\0\0[\x18\x20]ftyp", re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_PAGE = re.compile(rb"\s*(?:<!doctype html|<html)", re.IGNORECASE)
_BEGINS_OBJECT = re.compile(r'\{\s*"(?:[^"\\\n]|\\.)*"\s*:')
_BEGINS_LIST = re.compile(r'\[\s*(?P<element>\{\s*"|")')
_NAME = re.compile(r'"?[A-Za-z_][\w.-]*"?')


def infer_format(path: str) -> str | None:
    """Return the format that a file's name implies; empty if the content decides, None if it is unknown."""
    name = path.lower()
    while name.endswith(COMPRESSED):
        inner = next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), "")
        if inner:
            return inner
        name = name.rpartition(".")[0]
        if not any(name.endswith(ending) for ending in ENDINGS):
            return ""
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), None)


def detect_format(head: bytes, name_format: str, column: str) -> str:
    """Return a format of `ENDINGS`, "document" for JSON that is not JSON lines, or "no prompts: " and the reason."""
    if _PICKLE.match(head):
        return "no prompts: a pickle, which runs the code in it when it is read"
    for magic, description in _NO_PROMPTS.items():
        if head.startswith(magic):
            return f"no prompts: {description}"
    return _detect_binary(head, name_format) or _detect_page_or_media(head) or _detect_text(head, name_format, column)


def _detect_binary(head: bytes, name_format: str) -> str:
    is_binary = _CONTROL.search(head) is not None
    if head.startswith((b"PAR1", b"PARE")) and (is_binary or name_format == "parquet"):
        return "parquet"
    if head.startswith(b"FEA1") and is_binary:
        return "no prompts: Feather version 1; write it again as Parquet"
    if head.startswith((b"ARROW1\0", b"\xff\xff\xff\xff")):
        return "arrow"
    if head[257:262] == b"ustar" or (name_format == "tar" and head):
        return "tar"
    return ""


def _detect_page_or_media(head: bytes) -> str:
    if _PAGE.match(head):
        return "no prompts: a web page, such as of an error when it was fetched"
    if _MEDIA.match(head):
        return "no prompts: an image or a video"
    return ""


def _detect_text(head: bytes, name_format: str, column: str) -> str:
    if not head or b"\0" in head[:512]:
        return name_format or ("text" if not head else "no prompts: of no known format")
    text, is_complete = head.decode("utf-8", "replace").lstrip(), len(head) < HEAD
    if text[:1] in ("{", "[") and (json_format := _detect_json(text, is_complete, name_format, column)):
        return json_format
    if name_format == "csv" or (name_format != "text" and _is_header(text.partition("\n")[0], column)):
        return "csv"
    return name_format or "text"


def _detect_json(text: str, is_complete: bool, name_format: str, column: str) -> str:
    """Tell JSON lines from one document, also if either is corrupt or truncated; empty if it is neither."""
    line, _, rest = text.partition("\n")
    has_first_line = bool(rest) or is_complete
    try:
        first = json.loads(line) if has_first_line else None
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict) and "problem" not in row_from_object(first, column):
        return "json"
    if first is not None and rest.strip():
        return "json" if name_format == "json" or (isinstance(first, dict) and name_format != "text") else ""
    if (
        first is not None
        or (is_complete and _is_json(text))
        or (_starts_as_document(text, is_complete) and not _is_lines(rest))
    ):
        return "document"
    return ""


def _starts_as_document(text: str, is_complete: bool) -> bool:
    """Tell whether a text begins as a JSON object, or as a list with a complete first element."""
    if not (listed := _BEGINS_LIST.match(text)):
        return bool(_BEGINS_OBJECT.match(text))
    try:
        _, end = json.JSONDecoder().raw_decode(text, listed.start("element"))
    except (ValueError, RecursionError):
        return not is_complete
    return text[end:].lstrip()[:1] in ("", ",", "]")


def _is_lines(text: str) -> bool:
    """Tell whether more lines are objects than list elements, which a comma follows."""
    objects = [line.strip() for line in text.split("\n") if line.lstrip().startswith("{")]
    return sum(map(_is_json, objects)) > sum(line.endswith(",") and _is_json(line[:-1]) for line in objects)


def _is_json(text: str) -> bool:
    """Tell whether a text consists of JSON values."""
    decoder, offset = json.JSONDecoder(), 0
    try:
        while offset < len(text):
            _, end = decoder.raw_decode(text, offset)
            offset = end + len(text[end:]) - len(text[end:].lstrip())
    except (ValueError, RecursionError):
        return False
    return True


def _is_header(line: str, column: str) -> bool:
    """Tell whether a line is a header of two or more columns, one of them for prompts."""
    wanted: Any = (column,) if column else COLUMNS["text"]
    for delimiter in DELIMITERS:
        names = [name.strip() for name in line.split(delimiter)]
        if len(names) > 1 and all(map(_NAME.fullmatch, names)):
            return any(name.strip('"').lower() in [column.lower() for column in wanted] for name in names)
    return False
