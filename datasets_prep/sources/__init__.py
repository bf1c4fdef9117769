"""Readers of prompt files as Arrow tables of a bounded number of rows, one module per format.

The format is detected from the content. A row that cannot be read is returned with its `problem` in place of a text, so
that no row is lost. A file that cannot be read at all is one such row.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from types import MappingProxyType
from typing import BinaryIO

import pyarrow as pa

from datasets_prep.sources import columnar, delimited, json_documents, tar_archives, text_lines
from datasets_prep.sources.format_detection import COMPRESSED, ENDINGS, detect_format, infer_format
from datasets_prep.sources.raw_prompt_schema import (
    SCHEMA,
    SCORES,
    UNREADABLE,
    PromptFile,
    build_problem_rows,
    describe_error,
)
from datasets_prep.sources.stream_decoding import DecompressedStream, decode_text, decompress

__all__ = [
    "PICKLE_ENDINGS",
    "READABLE_ENDINGS",
    "SCHEMA",
    "SCORES",
    "PromptFile",
    "decode_text",
    "read_tables",
    "require_format",
]

PICKLE_ENDINGS = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".joblib")
READABLE_ENDINGS = tuple(ENDINGS)
"""Name endings of readable files."""


def read_tables(file: PromptFile, batch_size: int) -> Iterator[pa.Table]:
    """Yield a file's rows as tables of `SCHEMA`, each of at most `batch_size` rows.

    Raises:
        ValueError: if the name is of no known format, or of a pickle.
    """
    name_format = require_format(file.path)
    try:
        with closing(file.open_stream()) as raw:
            content = decompress(raw)
            if content.is_unchanged and detect_format(content.head, name_format, file.column) == "parquet":
                with file.filesystem.open_input_file(file.path) as opened:
                    yield from columnar.read_parquet(opened, batch_size, file.column)
            else:
                yield from _read_content(content, batch_size, name_format, file.column)
    except UNREADABLE as error:
        yield from build_problem_rows(1, f"file: {describe_error(error)}", batch_size)


def _read_content(content: DecompressedStream, batch_size: int, name_format: str, column: str) -> Iterator[pa.Table]:
    detected = detect_format(content.head, name_format, column)
    if detected == "tar":
        yield from tar_archives.read_tar(content.stream, batch_size, column, partial(_read_member, column))
    elif detected == "text":
        yield from text_lines.read_text(content.stream, batch_size)
    elif detected in _COLUMN_READERS:
        yield from _COLUMN_READERS[detected](content.stream, batch_size, column)
    else:
        yield from build_problem_rows(1, f"file: {detected}", batch_size)


def _read_member(column: str, name: str, stream: BinaryIO, batch_size: int) -> Iterator[pa.Table]:
    """Read a file within an archive; an unreadable one is one row with the reason."""
    try:
        yield from _read_content(decompress(stream), batch_size, infer_format(name) or "", column)
    except pa.ArrowException as error:
        yield from build_problem_rows(1, f"{name}: {describe_error(error)}", batch_size)


_COLUMN_READERS: Mapping[str, Callable[[BinaryIO, int, str], Iterator[pa.Table]]] = MappingProxyType(
    {
        "json": text_lines.read_json_lines,
        "document": json_documents.read_json_document,
        "csv": delimited.read_csv,
        "parquet": columnar.read_parquet_stream,
        "arrow": columnar.read_arrow,
    }
)


def require_format(path: str) -> str:
    """Return the format that a file's name implies; empty if the content decides.

    Raises:
        ValueError: if the name is of no known format, or of a pickle.
    """
    name = path.lower()
    while name.endswith(COMPRESSED):
        name = name.rpartition(".")[0]
    if name.endswith(PICKLE_ENDINGS):
        raise ValueError(
            f"{path}: got a pickle, which runs the code in it when it is read; expected another format. If you trust "
            "it, convert it: `python -c \"import pickle, json; [print(json.dumps({'prompt': p})) for p in "
            f"pickle.load(open('{path.rpartition('/')[2]}', 'rb'))]\" > prompts.jsonl`."
        )
    name_format = infer_format(path)
    if name_format is None:
        raise ValueError(f"{path}: got an unknown format; expected {', '.join(READABLE_ENDINGS)}.")
    return name_format
