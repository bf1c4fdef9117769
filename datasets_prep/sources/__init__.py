"""Readers of prompt files as Arrow tables of a bounded number of rows, one module per format.

The format is told by the content. A row that cannot be read is a row all the same, with its `problem` in place of a
text: rows in are rows out and rows refused. A file that cannot be read at all is one such row.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from types import MappingProxyType
from typing import BinaryIO

import pyarrow as pa

from datasets_prep.sources import archives, delimited, documents, lines, tables
from datasets_prep.sources.rows import SCHEMA, SCORES, UNREADABLE, File, problem_of, refused
from datasets_prep.sources.sniff import COMPRESSED, ENDINGS, kind_of, named_kind
from datasets_prep.sources.unpack import Unpacked, decoded, unpacked

__all__ = ["PICKLES", "READERS", "SCHEMA", "SCORES", "File", "decoded", "read", "reader_of"]

PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".joblib")
READERS = tuple(ENDINGS)
"""Endings of the names of files that are read."""


def read(file: File, rows: int) -> Iterator[pa.Table]:
    """Tables of `SCHEMA`, of at most so many rows.

    Raises:
        ValueError: for a name of no known format, and for a pickle's.
    """
    named = reader_of(file.path)
    try:
        with closing(file.stream()) as raw:
            content = unpacked(raw)
            if content.as_is and kind_of(content.head, named, file.column) == "parquet":
                with file.filesystem.open_input_file(file.path) as opened:
                    yield from tables.read_parquet(opened, rows, file.column)
            else:
                yield from _read_content(content, rows, named, file.column)
    except UNREADABLE as error:
        yield from refused(1, f"file: {problem_of(error)}", rows)


def _read_content(content: Unpacked, rows: int, named: str, column: str) -> Iterator[pa.Table]:
    kind = kind_of(content.head, named, column)
    if kind == "tar":
        yield from archives.read_tar(content.stream, rows, column, partial(_read_member, column))
    elif kind == "text":
        yield from lines.read_text(content.stream, rows)
    elif kind in _BY_COLUMN:
        yield from _BY_COLUMN[kind](content.stream, rows, column)
    else:
        yield from refused(1, f"file: {kind}", rows)


def _read_member(column: str, name: str, stream: BinaryIO, rows: int) -> Iterator[pa.Table]:
    """Read a file within an archive; an unreadable one is one row with the reason."""
    try:
        yield from _read_content(unpacked(stream), rows, named_kind(name) or "", column)
    except pa.ArrowException as error:
        yield from refused(1, f"{name}: {problem_of(error)}", rows)


_BY_COLUMN: Mapping[str, Callable[[BinaryIO, int, str], Iterator[pa.Table]]] = MappingProxyType(
    {
        "json": lines.read_json_lines,
        "document": documents.read_json_document,
        "csv": delimited.read_csv,
        "parquet": tables.read_parquet_stream,
        "arrow": tables.read_arrow,
    }
)


def reader_of(path: str) -> str:
    """Return the kind of file that a name promises; empty if any is possible.

    Raises:
        ValueError: as `read` does.
    """
    name = path.lower()
    while name.endswith(COMPRESSED):
        name = name.rpartition(".")[0]
    if name.endswith(PICKLES):
        raise ValueError(
            f"{path}: a pickle runs the code that is in it when it is read, and is refused; convert it where you trust "
            "it: `python -c \"import pickle, json; [print(json.dumps({'prompt': p})) for p in "
            f"pickle.load(open('{path.rpartition('/')[2]}', 'rb'))]\" > prompts.jsonl`"
        )
    kind = named_kind(path)
    if kind is None:
        raise ValueError(f"{path}: not of a known format; allowed: {', '.join(READERS)}")
    return kind
